"""Which implementation of joint_attention is used on a GPU, and with which options: tuning.json, read only here.

The file has three parts. "measured" has a row for each GPU name and shape class, written by `make tune` on such a GPU.
"by_rule" has an order of preference for each compute capability, from figures that others published or that were
measured on one GPU of it: each row's "source" begins with "by rule" and names them, "gpus" says which GPUs it was made
for, and "config" has options for our kernel where they are not the default ones. It gives way to a measured row.
"defaults" has options for our kernel by compute capability; those of 9.0 are the fastest that were tried on an H200,
the others were chosen by reasoning about instructions, registers and shared memory.

What is not installed, or switched off in PyTorch, is passed over for the next best. A GPU without a row, and a shape
that no row is about, use PyTorch's own choice of attention. Tuning options are stored whole, so that a row says exactly
what ran.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .attention_others import usable

PATH = Path(__file__).with_name("tuning.json")
SIZES = ("block_m", "block_n", "num_warps", "num_stages")
LONG = 4096  # tokens from which a shape counts as long: many blocks of keys for every block of queries


@dataclass(frozen=True)
class Config:
    """Options of our kernel; joint_attention.py says why there are these.

    Attributes:
        polynomial: one in how many exponentials runs on the FMA units (2, 4 or 8); 0 is none.
        ahead: the scores of the next block are begun before the exponentials of this one.
        unrolled: with `ahead`, two blocks in an iteration.
        producer: a warp of its own loads, and 2 x 64 queries are `ahead` (joint_attention_gluon.py): Hopper, head
            dimensions of 64 and 128 in half precision; `num_stages` blocks are loaded ahead.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    warp_specialize: bool = False
    polynomial: int = 0
    ahead: bool = False
    unrolled: bool = False
    producer: bool = False

    def __str__(self) -> str:
        """In a few words, the same for no two: what a measurement of it is kept under."""
        words = [f"{self.block_m}x{self.block_n}", f"{self.num_warps} warps", f"{self.num_stages} stages"]
        words += [f"{name} {value}" for name, value in asdict(self).items() if name not in SIZES and value > 1]
        words += [name for name, value in asdict(self).items() if value is True]
        return ", ".join(words)


# Exact arithmetic has no matrix units for float32; small tiles, since a float32 takes twice the shared memory.
FLOAT32 = Config(block_m=64, block_n=32, num_warps=4, num_stages=2)


@dataclass(frozen=True)
class Choice:
    """implementation: "ours", "flash", "cudnn", "efficient", "fa3", "fa4", or "torch" for PyTorch's own choice."""

    implementation: str
    config: Config
    reason: str


@functools.cache
def table() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(PATH.read_text())
    return loaded


def shape_class(head_dim: int, tokens: int) -> str:
    return f"head_dim {head_dim}, {'long' if tokens >= LONG else 'short'}"


def default_config(capability: tuple[int, int], dtype: torch.dtype) -> Config:
    """For a GPU that nobody measured: the row of the newest known capability that is not newer than this one."""
    if dtype == torch.float32:
        return FLOAT32
    rows = {tuple(map(int, name.split("."))): row for name, row in table()["defaults"].items()}
    known = [key for key in sorted(rows) if key <= capability] or [min(rows)]
    return Config(**rows[known[-1]])


def look_up(
    gpu: str,
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_dim: int,
    tokens: int,
    usable: Callable[[str], bool] = lambda name: True,
) -> Choice:
    """The choice for a GPU by its name. Pure, so that it can be asked about GPUs that are not here.

    Args:
        usable: whether an implementation can be called there.
    """
    key = shape_class(head_dim, tokens)
    default = default_config(capability, dtype)
    measured = table()["measured"].get(gpu, {}).get(key)
    rule = table()["by_rule"].get(".".join(map(str, capability)))
    if dtype == torch.float32:
        return Choice("torch", default, "PyTorch's own choice, because float32 is not tuned")
    if measured is not None:
        order = sorted(measured["milliseconds"], key=measured["milliseconds"].get)
        config, reason = Config(**measured["config"]), f"as measured on {gpu} for {key}"
    elif rule is not None and key in rule["shapes"]:
        order, reason = rule["order"], rule["source"]
        config = Config(**rule["config"]) if "config" in rule else default
    else:
        return Choice("torch", default, f"PyTorch's own choice, because {gpu} was not measured for {key}")
    chosen = next((name for name in order if usable(name)), "torch")
    passed = order[: order.index(chosen)] if chosen in order else order
    reason = f"the fastest {reason}" if measured is not None and not passed else reason
    return Choice(chosen, config, reason + (f"; not usable here: {', '.join(passed)}" if passed else ""))


def choose(device: torch.device, dtype: torch.dtype, head_dim: int, tokens: int) -> Choice:
    """The choice for the GPU a tensor is on. Elsewhere only the interpreter runs kernels: large tiles, few programs."""
    if device.type != "cuda":
        return Choice("ours", Config(64, 64, 4, 1), "the kernel in Triton's interpreter")
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return look_up(name, capability, dtype, head_dim, tokens, lambda found: usable(found, device, dtype))
