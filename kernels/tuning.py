"""Which implementation of joint_attention is the fastest on a GPU, and with which options: tuning.json, read only here.

The file has two parts. "measured" has a row for each GPU name and shape class, written by `python -m
consisid.kernels.tune` on such a GPU. "defaults" has options for our kernel by compute capability, chosen by reasoning
about registers and shared memory, not by measuring. A GPU without a row uses PyTorch's own choice of attention: what
nobody measured there does not replace what PyTorch's authors did. Tuning options are stored whole, so that a row says
exactly what ran.
"""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).with_name("tuning.json")
SIZES = ("block_m", "block_n", "num_warps", "num_stages")
LONG = 4096  # tokens from which a shape counts as long: many blocks of keys for every block of queries


@dataclass(frozen=True)
class Config:
    """Options of our kernel. polynomial: one in how many exponentials runs on the FMA units; 0 is none. ahead: the
    scores of the next block are begun before the exponentials of this one."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    warp_specialize: bool = False
    polynomial: int = 0
    ahead: bool = False

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
    """implementation: "ours", "flash", "cudnn", "efficient", or "torch" for PyTorch's own choice among its own."""

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


def look_up(gpu: str, capability: tuple[int, int], dtype: torch.dtype, head_dim: int, tokens: int) -> Choice:
    """The choice for a GPU by its name. Pure, so that it can be asked about GPUs that are not here."""
    key = shape_class(head_dim, tokens)
    row = table()["measured"].get(gpu, {}).get(key)
    if dtype == torch.float32 or row is None:
        why = "float32 is not tuned" if dtype == torch.float32 else f"{gpu} was not measured for {key}"
        return Choice("torch", default_config(capability, dtype), f"PyTorch's own choice, because {why}")
    return Choice(row["fastest"], Config(**row["config"]), f"the fastest as measured on {gpu} for {key}")


def choose(device: torch.device, dtype: torch.dtype, head_dim: int, tokens: int) -> Choice:
    """The choice for the GPU a tensor is on. Elsewhere only the interpreter runs kernels: large tiles, few programs."""
    if device.type != "cuda":
        return Choice("ours", Config(64, 64, 4, 1), "the kernel in Triton's interpreter")
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return look_up(name, capability, dtype, head_dim, tokens)
