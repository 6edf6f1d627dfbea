"""The engine within the memory that ConsisID's authors state for each form of diffusers' pipeline."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consisid.engine import ConsisID
from consisid.engine.memory.costs import video_costs
from consisid.engine.memory.planner import smallest
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW

from ..core.baselines import BASELINES
from ..core.samples import Ours, Sample, largest_peak, steps_of, within

GB = 1e9


@dataclass(frozen=True)
class Budget:
    """bytes: what the engine may use. scaled: that is not the stated figure, but in proportion to it."""

    bytes: int
    scaled: bool


def stated() -> list[float]:
    """The reserved GB of every row of the reference's table, in its order, the largest first."""
    return [form.reference_gb[1] for form in BASELINES if form.reference_gb is not None]


def budget_for(engine: ConsisID, gb: float, steps: int) -> Budget:
    """The engine's budget for a stated figure, GB reserved.

    PREVIEW on a GPU gets the figure itself. Elsewhere it would mean nothing: the budget lies between the smallest that
    works and everything resident as the figure lies between the smallest and the largest that are stated.
    """
    if engine.device.type == "cuda" and engine.shape == VideoShape.of(PREVIEW, None, None, None):
        return Budget(int(gb * GB), False)
    resident = engine.plan(None, steps=steps)
    # With the very arguments of the plan, so that nothing is counted again.
    kind = video_costs(
        engine.variant, engine.shape, engine.dtype, batch=1, steps=steps, guided=True, device=engine.device.type
    )
    least = smallest(kind, resident.machine, None, True)[1]
    low, high = min(stated()), max(stated())
    return Budget(int(least + (gb - low) / (high - low) * (resident.peak - least)), True)


@dataclass
class Within:
    """The engine as a maker of videos within a budget."""

    ours: Ours
    budget: Budget

    def __call__(self, index: int) -> Sample:
        with within(self.ours.engine, self.budget.bytes):
            return self.ours(index)


def budget_row(budget: Budget, samples: Sequence[Sample]) -> dict[str, Any]:
    """What a report says about the videos of a budget."""
    stats, peak = samples[-1].extra, largest_peak(samples)
    return {
        "budget_gb": budget.bytes / GB,
        "scaled": budget.scaled,
        "mode": stats["memory"],
        "predicted_gb": stats["predicted_bytes"] / GB,
        "peak_gb": None if peak is None else peak / GB,
        "seconds": statistics.median([sample.total for sample in samples]),
        "step_seconds": statistics.median(steps_of(samples)),
    }
