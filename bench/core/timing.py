"""Seconds of a call on any device, and of each graph inside a call."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from consisid.engine.runtime.executor import GraphExecutor


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """The clock in seconds, once the device has done what it was given."""
    wait(device)
    return time.perf_counter()


def mark(device: torch.device) -> Any:
    """A moment on the device's own clock: an event on a GPU, which nothing waits for."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    """Seconds between two marks; on a GPU both have to be reached."""
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """One call from start to end, the device's work included."""
    start = now(device)
    run()
    return now(device) - start


def device_seconds(run: Callable[[], Any], device: torch.device) -> float:
    """One call on the device's own clock, so that the launch of the first kernel is left out."""
    start = mark(device)
    run()
    end = mark(device)
    wait(device)
    return between(start, end)


def repeat(
    run: Callable[[], Any], device: torch.device, budget: float, at_least: int = 2, at_most: int = 30
) -> list[float]:
    """Seconds of several calls after one that is not counted: as many as fit in `budget` seconds, within the bounds."""
    seconds_of(run, device)
    first = device_seconds(run, device)
    count = max(at_least, min(at_most, int(budget / max(first, 1e-9))))
    return [first, *(device_seconds(run, device) for _ in range(count - 1))]


@dataclass
class Probe:
    """When each graph started and ended: (name, mark, mark) per call. The marks are read after the run, so that nothing
    waits for the device."""

    device: torch.device
    calls: list[tuple[str, Any, Any]] = field(default_factory=list)

    def watched(self, name: str, run: Callable[..., Any]) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Any]:
        def call(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
            start = mark(self.device)
            outputs = run(inputs, weights)
            self.calls.append((name, start, mark(self.device)))
            return outputs

        return call

    def seconds(self) -> float:
        """In all graphs."""
        return sum(between(start, end) for _, start, end in self.calls)

    def idle(self) -> list[float]:
        """Per pair of steps, seconds from the end of one's last graph to the start of the next one's first."""
        pairs = zip(self.calls, self.calls[1:], strict=False)
        return [between(a[2], b[1]) for a, b in pairs if (a[0], b[0]) == ("head", "embed")]


@contextmanager
def probing(networks: GraphExecutor) -> Iterator[Probe]:
    """Every graph of some networks reports its calls, inside the block."""
    probe, runners = Probe(networks.device), networks.runners
    networks.runners = {name: probe.watched(name, run) for name, run in runners.items()}
    try:
        yield probe
    finally:
        networks.runners = runners
