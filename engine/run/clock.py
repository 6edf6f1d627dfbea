"""Times the stages and steps of a run."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..video import Stats


class Clock:
    """Times the stages and steps of one run.

    On a GPU it waits for the device at the borders of stages only; steps are timed by events on its stream.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._seconds: dict[str, float] = {}
        self._marks: list[float | torch.cuda.Event] = []
        self._reserved = self._allocated = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def _mark(self) -> "float | torch.cuda.Event":
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _wait(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self._wait()
        if name == "denoise":
            self._marks = [self._mark()]
        yield
        self._seconds[name] = self._wait() - start
        if self.device.type == "cuda":
            # Whoever manages the weights counts anew at the borders of its own stages.
            self._reserved = max(self._reserved, torch.cuda.max_memory_reserved(self.device))
            self._allocated = max(self._allocated, torch.cuda.max_memory_allocated(self.device))

    def step(self) -> None:
        """A denoising step has ended."""
        self._marks.append(self._mark())

    def stats(self, modes: dict[str, str], calls: dict[str, int]) -> Stats:
        """What was measured so far."""
        steps = []
        for before, after in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(before, float) and isinstance(after, float):
                steps.append(after - before)
            elif isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
                steps.append(before.elapsed_time(after) / 1000)
        peak = self._reserved if self.device.type == "cuda" else peak_bytes(self.device)
        return Stats(dict(self._seconds), steps, calls, modes, peak, self._allocated)


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: reserved by PyTorch on a GPU, resident for the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024  # Linux counts in KiB
