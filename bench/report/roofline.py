"""Arithmetic and traffic over time, against the ceilings of the same run, and the distance to what we aim at."""

from typing import Any

from consisid.engine import ConsisID

from ..core.flops import decode_flops, step_bytes, step_cost, text_flops, weight_bytes
from ..core.peak_rates import Ceilings
from ..core.samples import Row, Sample

# What the project aims at for PREVIEW on an H200, seconds: a step, an untiled decode, a video of 50 steps.
AIMS = {"step": 1.3, "decode": 2.0, "video of 50 steps": 70.0}


def _step_seconds(samples: list[Sample]) -> float:
    return Row.of("", "", "", [seconds for sample in samples for seconds in sample.steps]).median


def _stage_seconds(samples: list[Sample], stage: str) -> float:
    return Row.of("", "", "", [sample.stages[stage] for sample in samples]).median


def achieved(engine: ConsisID, samples: list[Sample], ceilings: Ceilings) -> list[dict[str, Any]]:
    """Per stage its TFLOP and seconds, the rate, and its share of the product ceiling. bytes are the weights alone."""
    v, s, element = engine.variant, engine.shape, engine.dtype.itemsize
    cost = step_cost(v, s)
    texts = 1  # the empty negative prompt is kept from the first video on
    table = [
        ("step", 2 * cost.total, step_bytes(v, s, element), _step_seconds(samples)),
        ("decode", decode_flops(v, s), None, _stage_seconds(samples, "decode")),
        (
            "text",
            texts * text_flops(v, s),
            weight_bytes(v, s, ("text_layer",), element),
            _stage_seconds(samples, "text"),
        ),
    ]
    result = []
    for name, flops, moved, seconds in table:
        result.append(
            {
                "stage": name,
                "tflop": flops / 1e12,
                "seconds": seconds,
                "tflops": flops / seconds / 1e12,
                "of_ceiling": flops / seconds / 1e12 / ceilings.tflops,
                "weights_gbps": moved / seconds / 1e9 if moved else None,
                "of_copy_ceiling": moved / seconds / 1e9 / ceilings.gbps if moved else None,
            }
        )
    return result


def rows(engine: ConsisID) -> list[Row]:
    """The counted work of a sample and step by part, beside which FACTS can be held."""
    cost = step_cost(engine.variant, engine.shape)
    found = {"attention": cost.attention, "linears": cost.linears, "face": cost.face}
    note = "counted from the shapes, for one sample and step; not a measurement"
    return [Row.of("work", part, "TFLOP", [flops / 1e12], note) for part, flops in found.items()]


def targets(engine: ConsisID, samples: list[Sample], ceilings: Ceilings) -> list[dict[str, Any]]:
    """For PREVIEW on a GPU the gap of each stage to its aim, and how much of it arithmetic explains; else nothing."""
    if engine.variant.name != "preview" or engine.device.type != "cuda":
        return []
    step, decode = _step_seconds(samples), _stage_seconds(samples, "decode")
    rest = sum(_stage_seconds(samples, name) for name in samples[0].stages if name not in ("denoise", "decode"))
    least = {
        "step": 2 * step_cost(engine.variant, engine.shape).total / ceilings.tflops / 1e12,
        "decode": decode_flops(engine.variant, engine.shape) / ceilings.tflops / 1e12,
    }
    least["video of 50 steps"] = 50 * least["step"] + least["decode"]
    got = {"step": step, "decode": decode, "video of 50 steps": 50 * step + decode + rest}
    return [
        {
            "what": name,
            "aim_seconds": aim,
            "seconds": got[name],
            "extrapolated": name.startswith("video"),
            "gap_seconds": got[name] - aim,
            "least_by_arithmetic": least[name],
            "cause": f"arithmetic at the measured ceiling takes {least[name]:.2f} s; the other "
            f"{got[name] - least[name]:.2f} s are work off the matrix units, their partial use, traffic and launches",
        }
        for name, aim in AIMS.items()
    ]
