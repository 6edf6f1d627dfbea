"""A whole generate() with random weights: what was measured at N steps, and what follows for 50 by arithmetic."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from consisid.engine import ConsisID
from consisid.engine.decode import decode_chunks
from consisid.engine.stats import Stats

from ..cost import decode_flops, step_cost
from ..inputs import identity
from ..random_folder import random_engine
from ..runs import prompt_of
from . import Case, Context, Work

FULL = 50  # steps of a video by default


def extrapolated(stats: Stats, steps: int = FULL) -> float:
    """Seconds of a video of `steps` steps: the median step that many times, and everything else as it was."""
    ordered = sorted(stats.steps)
    rest = sum(stats.seconds.values()) - sum(stats.steps)
    return rest + steps * ordered[len(ordered) // 2]


def open_engine(c: Context) -> ConsisID:
    return random_engine(c.variant, c.device, c.dtype)


def work(c: Context, cfg: str) -> Work:
    engine = c.once("engine", lambda: open_engine(c))
    person = c.once("person", lambda: identity(c.variant))
    options = {"seed": 0, "num_inference_steps": c.steps, "cfg": cfg}
    kept: list[Stats] = []

    def run() -> None:
        # A new prompt each time: the text encoder keeps what it has encoded.
        kept.append(engine.generate(person, prompt_of(len(kept)), **options).stats)

    def without_data() -> None:
        video = engine.generate(person, prompt_of(0), output_type="latent", **options)
        list(decode_chunks(engine.networks(), video.latents[None]))  # frames would have to come to the host

    def more() -> dict[str, Any]:
        last = kept[-1]
        return {
            "steps": c.steps,
            "stage_seconds": last.seconds,
            "step_seconds": last.steps,
            "peak_reserved_gib": last.peak_bytes / 2**30,
            "not_measured_but_extrapolated": {f"seconds of {FULL} steps": extrapolated(last)},
        }

    note = "not checked here: the step and decode phases compare the same graphs"
    return Work(without_data if c.device.type == "meta" else run, note=note, more=more)


def cases(c: Context) -> Iterator[Case]:
    flops = c.once(
        "flops", lambda: 2 * c.steps * step_cost(c.variant, c.shape).total + decode_flops(c.variant, c.shape)
    )
    for cfg in ("batched", "sequential"):
        yield Case(f"generate, {c.steps} steps, CFG {cfg}", partial(work, c, cfg), flops, repeats=3)
