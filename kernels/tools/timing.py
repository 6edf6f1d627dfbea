"""Milliseconds on a GPU."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

Run = Callable[[], Any]


def time(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, without what Python and the launch cost.

    Each is captured in a CUDA graph, because the shortest kernels are over before the next could be launched. Rounds
    alternate between the candidates, so that a GPU growing warm slows all of them alike.
    """
    graphs = {}
    for name, run in runs.items():
        run()  # compiles, and allocates what libraries allocate once
        torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            run()
        graphs[name].replay()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name in list(runs) * rounds:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graphs[name].replay()
        end.record()
        end.synchronize()
        times[name].append(start.elapsed_time(end))
    return {name: statistics.median(spent) for name, spent in times.items()}


def ceilings(rounds: int = 20) -> tuple[float, float]:
    """FLOP/s of a bf16 matrix product and bytes/s of a copy (read and written), the limits kernels are held against."""
    n = 8192
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    x = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    times = time({"product": lambda: torch.mm(a, b), "copy": lambda: y.copy_(x)}, rounds)
    return 2 * n**3 / times["product"] * 1e3, 2 * x.numel() / times["copy"] * 1e3
