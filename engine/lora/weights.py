"""LoRAs: low-rank changes of the transformer's weights (Hu et al., arXiv:2106.09685).

Graphs take their weights as arguments, so a LoRA is other tensors and no rebuild: the loop runs as fast as without one.
Sums are made on the host in float32, so that they are the same bytes wherever the weights go.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.reading import Checkpoint
from ..errors import InputError
from ..graphs.graph import Graph
from .files import PEFT, LoraFile
from .names import sort_factors

PART = "transformer"


@dataclass(frozen=True)
class LowRankDelta:
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
    """The changes of one file, by the names of a checkpoint's tensors; source: what the file is called."""

    changes: Mapping[str, LowRankDelta]
    source: str = ""

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
    def read(cls, source: str | PathLike[str] | Mapping[str, Any], checkpoint: Checkpoint, **where: Any) -> "Lora":
        """A LoRA for a checkpoint's transformer. What a file has for other components is left out, with a warning.

        Args:
            source: a .safetensors file, a folder or hub id with one, or its tensors or arrays; with names as diffusers
                or PEFT give them, with lora_down, lora_up and alpha, or as kohya's scripts write them, with _ for
                every dot.
            where: as LoraFile.read takes it.

        Raises:
            InputError: no LoRA, or one of another model.
        """
        file = LoraFile("The LoRA", source) if isinstance(source, Mapping) else LoraFile.read(source, **where)
        name, settings = file.name, file.settings
        factors, alphas, left = sort_factors(name, file.tensors, checkpoint.names(PART))
        if left:
            warnings.warn(
                f"{name} changes {', '.join(sorted(left))} too; here a LoRA changes the {PART} only, and that was left "
                "out.",
                stacklevel=3,
            )
        if settings.use_dora:
            raise InputError(f"{name} is a DoRA, which is not taken.")
        if any(str(key).startswith(PEFT) for key in file.tensors) and not alphas and settings.lora_alpha is None:
            raise InputError(
                f"{name} has PEFT's names and does not say its alpha; put PEFT's adapter_config.json beside the file, "
                "or save it with diffusers' save_lora_weights."
            )
        found: dict[str, LowRankDelta] = {}
        for module, parts in factors.items():
            down, up, bias = (parts.get(key) for key in ("A.weight", "B.weight", "B.bias"))
            if down is None or up is None:
                raise InputError(f"{name} has one of lora_A and lora_B only for {module}; it is incomplete.")
            scale = settings.scale(module, down.shape[0], alphas.get(module))
            found[f"{module}.weight"] = LowRankDelta(up, down, scale)
            if bias is not None:
                found[f"{module}.bias"] = LowRankDelta(bias, None, scale)
        for target, change in found.items():
            _check(name, target, change, checkpoint)
        return cls(found, name)

    def weighted(self, weights: Mapping[str, float]) -> "Lora":
        """With weights by parts of modules' names, as diffusers' set_adapters takes them: for a module the first one
        that its name contains counts, and 1 without any."""

        def weight(module: str) -> float:
            return next((value for part, value in weights.items() if part in module), 1.0)

        return Lora(
            {
                target: replace(change, scale=change.scale * weight(target.rpartition(".")[0]))
                for target, change in self.changes.items()
            }
        )


Active = tuple[tuple[Lora, float], ...]
"""LoRAs and their weights, in the order in which they are added."""


class LoraPatchedCheckpoint:
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

    def in_place(self, part: str, sources: Sequence[str], device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """See Checkpoint.in_place; None for what LoRAs change."""
        if any(self.differs(part, source) for source in sources):
            return None
        return self.checkpoint.in_place(part, sources, device, dtype)

    def tensor(self, part: str, name: str, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """A tensor, rounded once."""
        if not self.differs(part, name):
            return self.checkpoint.tensor(part, name, device).to(dtype)
        merged = self.checkpoint.tensor(part, name).to(torch.float32)
        for lora, weight in self.active:
            if name in lora.changes:
                merged = merged + lora.changes[name].delta(weight).view(merged.shape)
        return merged.to(dtype).to(device)


def key_of(active: Active) -> str:
    """What tells the LoRAs of one video from those of another; "" without any."""
    return " ".join(f"{lora.key}*{weight!r}" for lora, weight in active)


def _check(name: str, target: str, change: LowRankDelta, checkpoint: Checkpoint) -> None:
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


def reads(graph: Graph, names: Sequence[str], layer: int, changed: frozenset[str]) -> bool:
    """Whether a call of a layer takes one of these tensors of the transformer."""
    return graph.part == PART and any(not changed.isdisjoint(graph.sources(name, layer)) for name in names)
