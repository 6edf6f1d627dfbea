"""What the hardware gives at best: a large product and a large copy, measured in the same run as the rest."""

import statistics
from dataclasses import dataclass
from typing import Any

import torch

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

    def to_dict(self) -> dict[str, Any]:
        return {"tflops": self.tflops, "gbps": self.gbps, "how": self.how}


def product(device: torch.device, dtype: torch.dtype, budget: float) -> float:
    """TFLOP/s of the product alone, as `measure` has it; what is allocated is free again after it."""
    n = _side(device)
    # Random data: matrix units draw less power on zeros and run faster than they ever will.
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty(n, n, device=device, dtype=dtype)
    seconds = statistics.median(repeat(lambda: torch.mm(a, b, out=out), device, budget, at_least=5))
    return 2 * n**3 / seconds / 1e12


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
    tflops = product(device, dtype, budget)
    source = torch.randint(0, 256, (size,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = statistics.median(repeat(lambda: target.copy_(source), device, budget, at_least=5))
    name = str(dtype).removeprefix("torch.")
    how = f"median: product of two {name} matrices of {n} x {n}; copy of {size / 2**20:.0f} MiB, read and written"
    return Ceilings(tflops, 2 * size / copy / 1e9, how)
