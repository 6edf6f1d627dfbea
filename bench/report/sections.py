"""Parts of a report that follow from samples: rows, rates, and the engine beside diffusers and within the memory that
ConsisID's authors state for each form of it."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from consisid.engine import ConsisID
from consisid.engine.memory.costs import video_costs
from consisid.engine.memory.planner import smallest
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW

from ..core.baselines import BASELINES, Baseline
from ..core.flops import STEP_GRAPHS, decode_flops, step_cost, text_flops, weight_bytes
from ..core.peak_rates import Ceilings
from ..core.samples import Row, Sample, largest_peak, steps_of

GB = 1e9


def sample_rows(samples: Mapping[str, Sequence[Sample]]) -> list[Row]:
    """Seconds of videos and their stages, of steps, and the peak, by maker; an ablation makes latents, no video."""
    found = []
    for name, made in samples.items():
        if "decode" in made[0].stages:
            found.append(Row.of("video", name, "s", [sample.total for sample in made]))
            found += [
                Row.of("stage", f"{name}: {stage}", "s", [sample.stages[stage] for sample in made])
                for stage in made[0].stages
            ]
        note = "without the first step, which has no mark before it" if name.startswith("diffusers") else ""
        found.append(Row.of("step", name, "s", steps_of(made), note))
        peaks = [sample.peak / 2**30 for sample in made if sample.peak is not None]
        if peaks:
            found.append(Row.of("memory", f"{name}: peak allocated", "GiB", peaks, "less what the others hold at rest"))
    return found


def _summary(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Medians and the largest peak; None of nothing."""
    if not samples:
        return None
    peak = largest_peak(samples)
    return {
        "seconds": statistics.median([sample.total for sample in samples]),
        "step_seconds": statistics.median(steps_of(samples)),
        "peak_gb": None if peak is None else peak / GB,
    }


def baseline_row(
    form: Baseline, theirs: Sequence[Sample], ours: Sequence[Sample], within: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A form of diffusers beside the engine in the same turns, what its authors state, and the engine within that."""

    stated = list(form.reference_gb) if form.reference_gb else None
    return {"name": form.name, "stated_gb": stated, "theirs": _summary(theirs), "ours": _summary(ours),
            "within": within}  # fmt: skip


def roofline(engine: ConsisID, samples: Sequence[Sample], ceilings: Ceilings) -> list[dict[str, Any]]:
    """Per stage its TFLOP and seconds, the rate, and its share of the product ceiling; of a stage that goes through
    weights, what reading them once takes of the copy ceiling."""
    v, s, rows = engine.variant, engine.shape, []
    for name, flops, graphs, seconds in (
        ("step", 2 * step_cost(v, s).total, STEP_GRAPHS, steps_of(samples)),
        ("decode", decode_flops(v, s), (), [sample.stages["decode"] for sample in samples]),
        # Of one prompt: the empty negative one is kept from the first video on.
        ("text", text_flops(v, s), ("text_layer",), [sample.stages["text"] for sample in samples]),
    ):
        spent = statistics.median(seconds)
        tflops, gbps = flops / spent / 1e12, weight_bytes(v, s, graphs, engine.dtype.itemsize) / spent / 1e9
        rows.append(
            {
                "stage": name, "tflop": flops / 1e12, "seconds": spent, "tflops": tflops,
                "of_ceiling": tflops / ceilings.tflops, "weights_gbps": gbps or None,
                "of_copy_ceiling": gbps / ceilings.gbps if gbps else None,
            }
        )  # fmt: skip
    return rows


def counted_rows(engine: ConsisID) -> list[Row]:
    """The counted work of a sample and step by part."""
    cost = step_cost(engine.variant, engine.shape)
    found = {"attention": cost.attention, "linears": cost.linears, "face": cost.face}
    note = "counted from the shapes, for one sample and step; not a measurement"
    return [Row.of("work", part, "TFLOP", [flops / 1e12], note) for part, flops in found.items()]


def stated_gb() -> list[float]:
    """The reserved GB of every row of the reference's table, in its order, the largest first."""
    return [form.reference_gb[1] for form in BASELINES if form.reference_gb is not None]


def budget_for(engine: ConsisID, gb: float, steps: int) -> tuple[int, bool]:
    """The engine's budget in bytes for a stated figure, GB reserved, and whether it is in proportion to that.

    PREVIEW on a GPU gets the figure itself. Elsewhere it would mean nothing: the budget lies between the smallest that
    works and everything resident as the figure lies between the smallest and the largest that are stated.
    """
    if engine.device.type == "cuda" and engine.shape == VideoShape.of(PREVIEW, None, None, None):
        return int(gb * GB), False
    resident = engine.plan(None, steps=steps)
    # With the very arguments of the plan, so that nothing is counted again.
    kind = video_costs(
        engine.variant, engine.shape, engine.dtype, batch=1, steps=steps, guided=True, device=engine.device.type
    )
    least = smallest(kind, resident.machine, None, True)[1]
    low, high = min(stated_gb()), max(stated_gb())
    return int(least + (gb - low) / (high - low) * (resident.peak - least)), True


def budget_row(budget: int, scaled: bool, samples: Sequence[Sample]) -> dict[str, Any]:
    """What a report says about the videos of a budget."""
    stats = samples[-1].extra
    return {
        "budget_gb": budget / GB, "scaled": scaled, "mode": stats["memory"],
        "predicted_gb": stats["predicted_bytes"] / GB, **(_summary(samples) or {}),
    }  # fmt: skip
