"""Where the time and the memory of a video went."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Stats:
    """Where the time and the memory of a video went.

    Attributes:
        seconds: per stage, in the order of the work.
        steps: seconds of each denoising step.
        calls: how often each graph ran.
        modes: what was chosen: CFG mode, dtype, device.
        peak_bytes: the most device memory reserved during the run; on a CPU the peak resident set of the process.
        allocated_bytes: the most of it that tensors took at once; 0 on a CPU.
        predicted_bytes: the peak that the plan predicted; None without a plan.
        stage_bytes: the most device memory reserved in each stage of the plan of the memory; empty where weights stay
            on the device, and on a CPU.
        streamed_bytes: weights copied to the device.
        stalls: seconds of each denoising step in which it waited for weights.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    peak_bytes: int = 0
    allocated_bytes: int = 0
    predicted_bytes: int | None = None
    stage_bytes: dict[str, int] = field(default_factory=dict)
    streamed_bytes: int = 0
    stalls: list[float] = field(default_factory=list)

    def summary(self) -> str:
        """One line: where the time went."""
        stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        per_step = (
            f" ({len(self.steps)} steps of {sorted(self.steps)[len(self.steps) // 2]:.3f} s)" if self.steps else ""
        )
        text = f"{sum(self.seconds.values()):.2f} s: {stages}{per_step}; peak {self.peak_bytes / 2**30:.2f} GiB"
        if "weights from" in self.modes:
            text += f", weights from {self.modes['weights from']}"
        if self.predicted_bytes is not None:
            text += f" (predicted {self.predicted_bytes / 2**30:.2f} GiB)"
        if self.streamed_bytes:
            text += f", {self.streamed_bytes / 1e9:.2f} GB streamed, steps stalled {sum(self.stalls):.3f} s"
        return text


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
