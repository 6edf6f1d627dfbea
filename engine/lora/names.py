"""Whose factor a tensor of a LoRA is: the names that diffusers, PEFT and kohya's scripts give them."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, shown
from ..util.parsing import has_numbers
from .files import PEFT

LONGEST = 512  # characters of a name
PREFIXES = (PEFT, "transformer.", "diffusion_model.")  # the last two are of diffusers and of others
# What kohya's scripts put before the name of a module, in which they write _ for every dot.
FLAT = ("lora_unet_", "lora_transformer_")
# Other components of a pipeline, by how diffusers, PEFT and kohya's scripts begin the names of their tensors.
OTHERS = re.compile(r"(text_encoder(_\d)?|unet|vae|text_model|conditioner)\.|(lora_te\d?|lora_vae|lora_prior)_")
# PEFT's lora_A and lora_B, perhaps with the adapter's name behind; lora_down and lora_up; and diffusers' old lora.down.
FACTOR = re.compile(
    r"(?P<module>.+?)[._]lora[._](?P<side>A|B|down|up)(?:\.(?!weight$|bias$)[^.]+)?\.(?P<kind>weight|bias)"
)
SIDES = {"A": "A", "B": "B", "down": "A", "up": "B"}


def sort_factors(
    name: str, state: Mapping[Any, Any], names: Collection[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float], set[str]]:
    """By module its factors ("A.weight", "B.weight", "B.bias") and its alpha, where it has one; and the components
    whose tensors were left out.

    Args:
        name: what errors call the LoRA.
        state: its tensors, or arrays.
        names: of the transformer's tensors.

    Raises:
        InputError: tensors that are something else, LoRAs of two names, or none of the transformer.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    left: set[str] = set()
    modules = {found.rpartition(".")[0].replace(".", "_"): found.rpartition(".")[0] for found in names}
    for key, value in state.items():
        if not isinstance(key, str) or len(key) > LONGEST:
            raise InputError(f"{name} has a tensor called {shown(key)}, which is no name in a LoRA.")
        other = OTHERS.match(key.removeprefix(PEFT))
        if other:
            left.add(other[0].rstrip("._"))
            continue
        bare = _without_prefixes(key, modules)
        match = FACTOR.fullmatch(bare)
        if match and (part := f"{SIDES[match['side']]}.{match['kind']}") != "A.bias":
            parts = factors.setdefault(_module(match["module"]), {})
            if part in parts:
                raise InputError(f"{name} has several LoRAs in one file, {key} among them; give one at a time.")
            parts[part] = _factor(name, key, value, part.endswith("bias"))
        elif bare.endswith(".alpha"):
            alphas[_module(bare.removesuffix(".alpha"))] = _alpha(name, key, value)
        else:
            raise InputError(f"{name} has a tensor {key}, which is no part of a LoRA; DoRA and LoKr are not taken.")
    if not factors:
        what = f"changes {', '.join(sorted(left))} only, not the transformer" if left else "is empty"
        raise InputError(f"{name} {what}; give a LoRA of this model's transformer.")
    return factors, alphas, left


def _without_prefixes(key: str, modules: Mapping[str, str]) -> str:
    """A key as it begins with the name of a module of the transformer."""
    bare = key
    while prefix := next((prefix for prefix in PREFIXES if bare.startswith(prefix)), ""):
        bare = bare.removeprefix(prefix)
    flat = next((prefix for prefix in FLAT if bare.startswith(prefix)), None)
    if flat is None:
        return bare
    module, dot, rest = bare.removeprefix(flat).partition(".")
    return modules.get(module, module) + dot + rest


def _module(name: str) -> str:
    """A module by the name that it has in the transformer: diffusers' old files name attention processors."""
    if ".processor." not in name:
        return name
    return name.replace(".processor.", ".") + (".0" if name.endswith("to_out") else "")


def _factor(name: str, key: str, value: Any, is_bias: bool) -> Tensor:
    """A tensor of its own, on the CPU: a caller may go on training.

    Raises:
        InputError: it is none, or holds no numbers.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, Tensor) or not has_numbers(value):
        kind = value.dtype if isinstance(value, Tensor | np.ndarray) else type(value).__name__
        raise InputError(f"{name} has for {key} no tensor of floats ({kind}).")
    if value.dim() < (1 if is_bias else 2) or not value.numel():
        raise InputError(f"{name} has {list(value.shape)} for {key}; it is damaged, or no LoRA.")
    factor = value.detach().cpu().clone()
    if not factor.float().isfinite().all():
        raise InputError(f"{name} has numbers that are not finite in {key}; it is damaged, or its training failed.")
    return factor


def _alpha(name: str, key: str, value: Any) -> float:
    """The one number that an alpha is, however it is stored.

    Raises:
        InputError: it is no number, or several.
    """
    try:
        numbers = np.asarray(value.detach().float().cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        numbers = np.empty(0)
    values = set(numbers.ravel().tolist()) if numbers.dtype.kind in "iuf" else set()
    if len(values) != 1 or not np.isfinite(numbers).all():
        given = "several values" if len(values) > 1 else "no finite number"
        raise InputError(f"{name} has {given} for {key}; an alpha is one number.")
    return float(values.pop())
