"""Arithmetic and traffic over time, against the ceilings of the same run."""

import statistics
from collections.abc import Sequence
from typing import Any

from consisid.engine import ConsisID

from ..core.flops import STEP_GRAPHS, decode_flops, step_cost, text_flops, weight_bytes
from ..core.peak_rates import Ceilings
from ..core.samples import Row, Sample, stage_of, steps_of


def achieved(engine: ConsisID, samples: Sequence[Sample], ceilings: Ceilings) -> list[dict[str, Any]]:
    """Per stage its TFLOP and seconds, the rate, and its share of the product ceiling; of a stage that goes through
    weights, what reading them once takes of the copy ceiling."""
    v, s, rows = engine.variant, engine.shape, []
    for name, flops, graphs, seconds in (
        ("step", 2 * step_cost(v, s).total, STEP_GRAPHS, steps_of(samples)),
        ("decode", decode_flops(v, s), (), stage_of(samples, "decode")),
        # Of one prompt: the empty negative one is kept from the first video on.
        ("text", text_flops(v, s), ("text_layer",), stage_of(samples, "text")),
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
