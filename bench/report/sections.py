"""Parts of a report that follow from samples: rows, the waterfall, peers side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.ablation import FACE_ONCE, MODULATION_ONCE, UNCOMPILED, UNHOISTED
from ..core.baselines import EAGER, Peer
from ..core.samples import Row, Sample

GRAPHS = "one graph per block, fused q/k/v, folded face attention, no text in the last block"
TECHNIQUES = {
    EAGER.name: "the reference, eager",
    UNCOMPILED: GRAPHS,
    UNHOISTED: f"{GRAPHS}; as the engine's backend compiles them",
    FACE_ONCE: "the facial extractor, and keys and values of the face attention, once per person",
    MODULATION_ONCE: "the modulation of all blocks and steps in one product before the loop",
    "ours": "the text's projection and the image's half of the patch embedding once; generate() itself",
}


def median(values: Sequence[float]) -> float:
    return Row.of("", "", "", list(values)).median


def steps_of(samples: Sequence[Sample]) -> list[float]:
    """Seconds of all steps."""
    return [seconds for sample in samples for seconds in sample.steps]


def rows(samples: Mapping[str, Sequence[Sample]]) -> list[Row]:
    """Seconds of videos and their stages, of steps, and the peak, by maker. A rung makes no video, only latents."""
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


def waterfall(samples: Mapping[str, Sequence[Sample]]) -> list[dict[str, Any]]:
    """Seconds of a step down the rungs; gain is what a rung saves over the one above."""
    rungs, above = [], None
    for name, technique in TECHNIQUES.items():
        if name in samples:
            seconds = median(steps_of(samples[name]))
            rungs.append(
                {"name": name, "technique": technique, "step_seconds": seconds, "gain": above and above - seconds}
            )
            above = seconds
    return rungs


def peer_row(
    peer: Peer,
    theirs: Sequence[Sample] | None,
    ours: Sequence[Sample] | None,
    within: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A form of diffusers beside the engine in the same turns, what its authors state, and the engine within that."""

    def of(found: Sequence[Sample] | None) -> dict[str, Any] | None:
        if not found:
            return None
        peaks = [sample.peak for sample in found if sample.peak is not None]
        return {
            "seconds": median([sample.total for sample in found]),
            "step_seconds": median(steps_of(found)),
            "peak_gb": max(peaks) / 1e9 if peaks else None,
        }

    stated = list(peer.reference_gb) if peer.reference_gb else None
    return {"name": peer.name, "stated_gb": stated, "theirs": of(theirs), "ours": of(ours), "within": within}
