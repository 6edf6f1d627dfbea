"""Seconds of a call on any device."""

import time
from collections.abc import Callable
from typing import Any

import torch


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """One call from start to end, the device's work included."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def device_seconds(run: Callable[[], Any], device: torch.device) -> float:
    """One call on the device's own clock: by events on a GPU, so that the launch of the first kernel is left out."""
    if device.type != "cuda":
        return seconds_of(run, device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def repeat(
    run: Callable[[], Any], device: torch.device, budget: float, at_least: int = 2, at_most: int = 30
) -> list[float]:
    """Seconds of several calls after one that is not counted: as many as fit in `budget` seconds, within the bounds."""
    seconds_of(run, device)
    first = device_seconds(run, device)
    count = max(at_least, min(at_most, int(budget / max(first, 1e-9))))
    return [first, *(device_seconds(run, device) for _ in range(count - 1))]
