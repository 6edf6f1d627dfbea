"""A whole generate() with random weights: what was measured at N steps, and what follows for 50 by arithmetic."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from consisid.engine.video import Stats

from ..core.flops import decode_flops, step_cost
from ..core.inputs import identity
from ..core.samples import prompt_of
from .cases import Case, Context, Work
from .videos import engine_of, figures

FULL = 50  # steps of a video by default


def extrapolated(stats: Stats, steps: int = FULL) -> float:
    """Seconds of a video of `steps` steps: the median step that many times, and everything else as it was."""
    ordered = sorted(stats.steps)
    rest = sum(stats.seconds.values()) - sum(stats.steps)
    return rest + steps * ordered[len(ordered) // 2]


def work(c: Context, stack: ExitStack, cfg: str) -> Work:
    engine = engine_of(c, stack)
    person = c.once("person", lambda: identity(c.variant))
    kept: list[Stats] = []

    def run() -> None:
        # A new prompt each time: the text encoder keeps what it has encoded.
        video = engine.generate(person, prompt_of(len(kept)), seed=0, num_inference_steps=c.steps, cfg=cfg)
        kept.append(video.stats)

    def more() -> dict[str, Any]:
        extrapolation = {f"seconds of {FULL} steps": extrapolated(kept[-1])}
        return {"steps": c.steps, "not_measured_but_extrapolated": extrapolation, **figures(c, kept[-1])}

    note = "not checked here: the step and decode phases compare the same graphs"
    return Work(run, note=note, more=more)


def cases(c: Context) -> Iterator[Case]:
    flops = c.once(
        "flops", lambda: 2 * c.steps * step_cost(c.variant, c.shape).total + decode_flops(c.variant, c.shape)
    )
    with ExitStack() as stack:
        for cfg in ("batched", "sequential"):
            yield Case(f"generate, {c.steps} steps, CFG {cfg}", partial(work, c, stack, cfg), flops, repeats=3)
