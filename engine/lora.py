"""LoRAs: low-rank changes of the transformer's weights (Hu et al., arXiv:2106.09685).

Graphs take their weights as arguments, so a LoRA is other tensors and no rebuild: the loop runs as fast as without one.
Sums are made on the host in float32, so that they are the same bytes wherever the weights go.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .errors import InputError
from .lora_files import PEFT, LoraFile
from .random_weights import RandomWeights

PART = "transformer"
PREFIXES = (PEFT, "transformer.", "diffusion_model.")  # the last two are of diffusers and of others
# PEFT's lora_A and lora_B, perhaps with the adapter's name behind; lora_down and lora_up; and diffusers' old lora.down.
FACTOR = re.compile(
    r"(?P<module>.+?)[._]lora[._](?P<side>A|B|down|up)(?:\.(?!weight$|bias$)[^.]+)?\.(?P<kind>weight|bias)"
)
SIDES = {"A": "A", "B": "B", "down": "A", "up": "B"}


@dataclass(frozen=True)
class Change:
    """What one LoRA does to one tensor: + scale * up @ down.

    up [out, r, ...] and down [r, in, ...]; a bias has an up [out] only.
    """

    up: Tensor
    down: Tensor | None
    scale: float

    def delta(self, weight: float) -> Tensor:
        """float32, on the host, flat behind the first dimension."""
        up = weight * self.scale * self.up.float()
        return up if self.down is None else up.flatten(1) @ self.down.float().flatten(1)


@dataclass(frozen=True, eq=False)
class Lora:
    """The changes of one file, by the names of a checkpoint's tensors."""

    changes: Mapping[str, Change]

    @cached_property
    def key(self) -> str:
        """sha256 of names and numbers."""
        digest = hashlib.sha256()
        for name, change in sorted(self.changes.items()):
            digest.update(f"{name} {change.scale!r}\0".encode())
            for factor in (change.up, change.down):
                if factor is not None:
                    digest.update(factor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def read(cls, source: str | Path | Mapping[str, Tensor], checkpoint: Checkpoint, **where: Any) -> "Lora":
        """A LoRA for a checkpoint's transformer.

        Args:
            source: a .safetensors file, a folder or hub id with one, or its tensors; with names as diffusers or PEFT
                give them, or with lora_down, lora_up and alpha.
            where: as LoraFile.read takes it.

        Raises:
            InputError: no LoRA, or one of another model.
        """
        file = LoraFile("The LoRA", source) if isinstance(source, Mapping) else LoraFile.read(source, **where)
        name, settings = file.name, file.settings
        factors, alphas = _sort(name, file.tensors)
        if settings.get("use_dora"):
            raise InputError(f"{name} is a DoRA, which is not taken.")
        if any(key.startswith(PEFT) for key in file.tensors) and not alphas and "lora_alpha" not in settings:
            raise InputError(
                f"{name} has PEFT's names and does not say its alpha; put PEFT's adapter_config.json beside the file, "
                "or save it with diffusers' save_lora_weights."
            )
        found: dict[str, Change] = {}
        for module, parts in factors.items():
            down, up, bias = (parts.get(key) for key in ("A.weight", "B.weight", "B.bias"))
            if down is None or up is None:
                raise InputError(f"{name} has one of lora_A and lora_B only for {module}; it is incomplete.")
            scale = _scale(module, down.shape[0], settings, alphas)
            found[f"{module}.weight"] = Change(up, down, scale)
            if bias is not None:
                found[f"{module}.bias"] = Change(bias, None, scale)
        for target, change in found.items():
            _check(name, target, change, checkpoint)
        return cls(found)


Active = tuple[tuple[Lora, float], ...]
"""LoRAs and their weights, in the order in which they are added."""


class Merged:
    """A checkpoint's tensors with the active LoRAs in them.

    Attributes:
        names: the tensors of the transformer that are not the checkpoint's own.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.active: Active = ()
        self.names: frozenset[str] = frozenset()
        self._changing: frozenset[str] = frozenset()

    def use(self, active: Active) -> frozenset[str]:
        """Other LoRAs from now on; the names of the tensors that change, among them those of a change before that
        never came to its end (`done`)."""
        if active != self.active:
            names = frozenset(name for lora, _ in active for name in lora.changes)
            self._changing |= self.names | names
            self.active, self.names = active, names
        return self._changing

    def done(self) -> None:
        """Nobody holds a tensor of before any more."""
        self._changing = frozenset()

    def differs(self, part: str, source: str) -> bool:
        """Whether a tensor is not the checkpoint's own."""
        return part == PART and source in self.names

    def tensor(self, part: str, name: str, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """A tensor, rounded once."""
        if not self.differs(part, name):
            return self.checkpoint.tensor(part, name, device).to(dtype)
        # Random weights differ from device to device, files do not.
        where = device if isinstance(self.checkpoint, RandomWeights) else "cpu"
        merged = self.checkpoint.tensor(part, name, where).to("cpu", torch.float32)
        for lora, weight in self.active:
            if name in lora.changes:
                merged = merged + lora.changes[name].delta(weight).view(merged.shape)
        return merged.to(dtype).to(device)


def key_of(active: Active) -> str:
    """What tells the LoRAs of one video from those of another; "" without any."""
    return " ".join(f"{lora.key}*{weight!r}" for lora, weight in active)


def _sort(name: str, state: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """By module its factors ("A.weight", "B.weight", "B.bias") and its alpha, where it has one.

    Raises:
        InputError: tensors that are something else, or LoRAs of two names.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, value in state.items():
        bare = key
        while prefix := next((prefix for prefix in PREFIXES if bare.startswith(prefix)), ""):
            bare = bare.removeprefix(prefix)
        match = FACTOR.fullmatch(bare)
        if match and (part := f"{SIDES[match['side']]}.{match['kind']}") != "A.bias":
            parts = factors.setdefault(_module(match["module"]), {})
            if part in parts:
                raise InputError(f"{name} has several LoRAs in one file, {key} among them; give one at a time.")
            parts[part] = value.detach().cpu().clone()  # a caller may go on training
        elif bare.endswith(".alpha"):
            alphas[_module(bare.removesuffix(".alpha"))] = float(value)
        else:
            raise InputError(f"{name} has a tensor {key}, which is no part of a LoRA; DoRA and LoKr are not taken.")
    if not factors:
        raise InputError(f"{name} is empty.")
    return factors, alphas


def _module(name: str) -> str:
    """A module by the name that it has in the transformer: diffusers' old files name attention processors."""
    if ".processor." not in name:
        return name
    return name.replace(".processor.", ".") + (".0" if name.endswith("to_out") else "")


def _check(name: str, target: str, change: Change, checkpoint: Checkpoint) -> None:
    """Whether a tensor is there and of the size that a change has.

    Raises:
        InputError: it is not.
    """
    if not checkpoint.has(PART, target):
        raise InputError(
            f"{name} changes {target}, which this model's transformer does not have; it is of another model, or of a "
            "part that takes none."
        )
    shape = checkpoint.tensor(PART, target, "meta").shape
    up, down = change.up.shape, None if change.down is None else change.down.shape
    rank = 1 if down is None else down[0]
    if up.numel() != shape[0] * rank or up[0] != shape[0] or (down and down.numel() != rank * shape[1:].numel()):
        factors = " and ".join(str(list(size)) for size in (up, down) if size is not None)
        raise InputError(f"{name} has {factors} for {target}, which is {list(shape)}; it is of another model.")


def _scale(module: str, rank: int, settings: Mapping[str, Any], alphas: Mapping[str, float]) -> float:
    """alpha / r, or alpha / sqrt(r) where the file says so; 1 where it does not say what alpha is, as in diffusers."""
    alpha = alphas.get(module)
    if alpha is None and "lora_alpha" in settings:
        patterns = settings.get("alpha_pattern") or {}
        matching = [pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", module)]
        alpha = patterns[matching[0]] if matching else settings["lora_alpha"]
    if alpha is None:
        return 1.0
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
