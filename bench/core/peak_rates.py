"""What the hardware gives at best: products of matrices and copies, measured in the same run as the rest."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .timing import repeat

MOVED = 0.10  # by how much a ceiling may differ between start and end of a run


@dataclass(frozen=True)
class Ceilings:
    """tflops: of a square product [n, n] x [n, n]; gbps: bytes read and written per second by a copy, in 1e9."""

    tflops: float
    gbps: float
    how: str

    def moved(self, later: "Ceilings") -> dict[str, float]:
        """The relative change of each until `later`."""
        return {"product": later.tflops / self.tflops - 1, "copy": later.gbps / self.gbps - 1}


def product(m: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], Any, Any]:
    """A call of [m, k] x [k, n], and both matrices."""
    # Random data: matrix units draw less power on zeros and run faster than they ever will.
    a, b = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (k, n)))
    return partial(torch.mm, a, b, out=torch.empty(m, n, device=device, dtype=dtype)), a, b


def copy(size: int, device: torch.device) -> tuple[Callable[[], Tensor], Tensor]:
    """A call that copies so many bytes on a device, and what it copies; its result is the copy."""
    source = torch.randn(size // 4, device=device)
    return partial(torch.empty_like(source).copy_, source), source


def product_rate(device: torch.device, dtype: torch.dtype, budget: float) -> float:
    """TFLOP/s of a large product, in about `budget` seconds; what is allocated is free again after it."""
    n = _side(device)
    run = product(n, n, n, device, dtype)[0]
    return 2 * n**3 / statistics.median(repeat(run, device, budget, at_least=5)) / 1e12


def _side(device: torch.device) -> int:
    return 8192 if device.type == "cuda" else 512


def measure(device: torch.device, dtype: torch.dtype, budget: float = 1.0) -> Ceilings:
    """Both ceilings.

    Args:
        dtype: of the product: bfloat16 where a report is about a GPU. A CPU without bfloat16 units would measure its
            conversions, so there it is the engine's.
        budget: seconds for each.
    """
    n, size = _side(device), 2**30 if device.type == "cuda" else 2**26
    tflops = product_rate(device, dtype, budget)
    seconds = statistics.median(repeat(copy(size, device)[0], device, budget, at_least=5))
    name = str(dtype).removeprefix("torch.")
    how = f"median: product of two {name} matrices of {n} x {n}; copy of {size / 2**20:.0f} MiB, read and written"
    return Ceilings(tflops, 2 * size / seconds / 1e9, how)
