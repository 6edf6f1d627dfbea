"""One video by whoever makes it, timed the same way, and several makers taking turns."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from consisid.engine import ConsisID, Identity
from consisid.engine.util.progress import Progress

from .inputs import prompt_of
from .timing import now


@dataclass
class Sample:
    """One video. total: seconds a caller waits; stages and steps: seconds; peak: bytes allocated, None on a CPU."""

    total: float
    stages: dict[str, float]
    steps: list[float]
    peak: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


Maker = Callable[[int], Sample]
"""Makes the video number `index`: the same number means the same prompt and seed for every maker."""


def steps_of(samples: Sequence[Sample]) -> list[float]:
    """Seconds of all steps."""
    return [seconds for sample in samples for seconds in sample.steps]


def largest_peak(samples: Sequence[Sample]) -> int | None:
    """Bytes; None on a CPU."""
    return max((sample.peak for sample in samples if sample.peak is not None), default=None)


@dataclass(frozen=True)
class Row:
    """A measured quantity: median and quartiles over `count` values."""

    section: str
    name: str
    unit: str
    median: float
    low: float
    high: float
    count: int
    note: str = ""

    @classmethod
    def of(cls, section: str, name: str, unit: str, values: Sequence[float], note: str = "") -> "Row":
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        # With few values the exclusive quartiles lie outside of what was seen.
        low, high = max(low, min(values)), min(high, max(values))
        return cls(section, name, unit, statistics.median(values), low, high, len(values), note)

    def stamped(self, made: Mapping[str, Any]) -> dict[str, Any]:
        return {**asdict(self), "made": dict(made)}


class Ours:
    """The engine, through generate().

    Args:
        output_type: "latent" ends before the decoder.
    """

    def __init__(self, engine: ConsisID, person: Identity, steps: int, output_type: str = "uint8"):
        self.engine, self.person, self.steps, self.output_type = engine, person, steps, output_type

    def __call__(self, index: int) -> Sample:
        start = now(self.engine.device)
        stats = self.engine.generate(
            self.person, prompt_of(index), seed=index, num_inference_steps=self.steps, output_type=self.output_type
        ).stats
        total = now(self.engine.device) - start
        extra = {"memory": stats.modes.get("memory"), "predicted_bytes": stats.predicted_bytes}
        return Sample(total, stats.seconds, stats.steps, extra=extra)


@contextmanager
def within(engine: ConsisID, budget: int) -> Iterator[None]:
    """The engine keeps to a budget in bytes inside the block, and to its own again after it.

    Raises:
        MemoryBudgetError: at the first video, if the budget is too small for it.
    """
    before, engine.memory = engine.memory, budget
    try:
        yield
    finally:
        engine.memory = before


class Resident:
    """What each maker of this process holds on the GPU at rest, so that each can be charged for its own memory."""

    def __init__(self, device: torch.device):
        self.device, self.held = device, dict[str, int]()

    def loading(self, name: str, load: Callable[[], Maker]) -> Maker:
        before = self._now()
        maker = load()
        self.held[name] = self._now() - before
        return maker

    def _now(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def charged(self, name: str, run: Callable[[], Sample]) -> Sample:
        """A sample with its peak: what was allocated at most, less what the others hold."""
        if self.device.type != "cuda":
            return run()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        sample = run()
        others = sum(held for other, held in self.held.items() if other != name)
        sample.peak = torch.cuda.max_memory_allocated(self.device) - others
        return sample


def alternate(
    makers: Mapping[str, Maker], runs: int, resident: Resident, first: int = 0, after: Callable[[], None] | None = None
) -> dict[str, list[Sample]]:
    """Each maker once without counting, then in turns, another one first each time: what slows the machine for a while
    slows all of them alike.

    Args:
        after: called after every counted turn.
    """
    names, samples = list(makers), dict[str, list[Sample]]((name, []) for name in makers)
    with Progress("measuring", (runs + 1) * len(names), "video") as progress:
        for index in range(runs + 1):
            start = max(0, index - 1) % len(names)
            for name in names[start:] + names[:start]:
                make = makers[name]
                sample = resident.charged(name, lambda make=make, i=first + index: make(i))  # type: ignore[misc]
                if index:
                    samples[name].append(sample)
                progress.advance()
            if index and after is not None:
                after()
    return samples
