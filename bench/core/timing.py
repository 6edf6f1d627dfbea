"""Seconds of a call on any device."""

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


@dataclass
class Call:
    """One call of a graph: marks at its start and end on the device's clock."""

    graph: str
    start: Any
    end: Any


@dataclass
class Probe:
    """Records when each graph starts and ends; the marks are read after the run, so nothing waits for the device."""

    device: torch.device
    calls: list[Call] = field(default_factory=list)

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000

    def watched(self, name: str, run: Callable[..., Any]) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Any]:
        def call(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
            start = self.mark()
            outputs = run(inputs, weights)
            self.calls.append(Call(name, start, self.mark()))
            return outputs

        return call

    def inside(self) -> float:
        """Seconds in all graphs."""
        return sum(self.between(call.start, call.end) for call in self.calls)

    def idle(self) -> list[float]:
        """Per pair of steps, seconds from the end of one's last graph to the start of the next one's first."""
        heads = [i for i, call in enumerate(self.calls[:-1]) if call.graph == "head"]
        following = [(self.calls[i], self.calls[i + 1]) for i in heads if self.calls[i + 1].graph == "embed"]
        return [self.between(before.end, after.start) for before, after in following]


@contextmanager
def probing(networks: GraphExecutor) -> Iterator[Probe]:
    """Every graph of some networks reports its calls, inside the block."""
    probe, runners = Probe(networks.device), networks.runners
    networks.runners = {name: probe.watched(name, run) for name, run in runners.items()}
    try:
        yield probe
    finally:
        networks.runners = runners
