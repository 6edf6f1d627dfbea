"""The engine within the memory that ConsisID's authors state for each form of diffusers' pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consisid.engine import ConsisID
from consisid.engine.memory.costs import video_costs
from consisid.engine.memory.planner import smallest
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW

from ..core.baselines import PEERS
from ..core.samples import Ours, Sample, within
from .sections import median, steps_of

GB = 1e9


@dataclass(frozen=True)
class Budget:
    """bytes: what the engine may use. scaled: that is not the stated figure, but in proportion to it."""

    bytes: int
    scaled: bool


def stated() -> list[float]:
    """The reserved GB of every row of the reference's table, in its order, the largest first."""
    return [peer.reference_gb[1] for peer in PEERS if peer.reference_gb is not None]


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
    share = (gb - low) / (high - low)
    return Budget(int(least + share * (resident.peak - least)), True)


@dataclass
class Within:
    """The engine as a maker of videos within a budget."""

    ours: Ours
    budget: Budget

    def __call__(self, index: int) -> Sample:
        with within(self.ours.engine, self.budget.bytes):
            return self.ours(index)


def row(budget: Budget, samples: Sequence[Sample]) -> dict[str, Any]:
    """What a report says about the videos of a budget."""
    stats, peaks = samples[-1].extra, [sample.peak for sample in samples if sample.peak is not None]
    return {
        "budget_gb": budget.bytes / GB,
        "scaled": budget.scaled,
        "mode": stats["memory"],
        "predicted_gb": stats["predicted_bytes"] / GB,
        "peak_gb": max(peaks) / GB if peaks else None,
        "seconds": median([sample.total for sample in samples]),
        "step_seconds": median(steps_of(samples)),
    }
