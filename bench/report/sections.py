"""Parts of a report that follow from samples: rows, and forms of diffusers beside the engine."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.baselines import Baseline
from ..core.samples import Row, Sample, largest_peak, stage_of, steps_of


def sample_rows(samples: Mapping[str, Sequence[Sample]]) -> list[Row]:
    """Seconds of videos and their stages, of steps, and the peak, by maker; an ablation makes latents, no video."""
    found = []
    for name, made in samples.items():
        if "decode" in made[0].stages:
            found.append(Row.of("video", name, "s", [sample.total for sample in made]))
            found += [Row.of("stage", f"{name}: {stage}", "s", stage_of(made, stage)) for stage in made[0].stages]
        note = "without the first step, which has no mark before it" if name.startswith("diffusers") else ""
        found.append(Row.of("step", name, "s", steps_of(made), note))
        peaks = [sample.peak / 2**30 for sample in made if sample.peak is not None]
        if peaks:
            found.append(Row.of("memory", f"{name}: peak allocated", "GiB", peaks, "less what the others hold at rest"))
    return found


def baseline_row(
    form: Baseline, theirs: Sequence[Sample] | None, ours: Sequence[Sample] | None, within: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A form of diffusers beside the engine in the same turns, what its authors state, and the engine within that."""

    def of(found: Sequence[Sample] | None) -> dict[str, Any] | None:
        if not found:
            return None
        peak = largest_peak(found)
        return {
            "seconds": statistics.median([sample.total for sample in found]),
            "step_seconds": statistics.median(steps_of(found)),
            "peak_gb": None if peak is None else peak / 1e9,
        }

    stated = list(form.reference_gb) if form.reference_gb else None
    return {"name": form.name, "stated_gb": stated, "theirs": of(theirs), "ours": of(ours), "within": within}
