"""A whole generate() with random weights: what was measured at N steps, and what follows for 50 by arithmetic."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from consisid.engine.stats import Stats

from ..inputs import identity
from ..random_engine import RandomEngine
from ..runs import prompt_of
from . import Case, Context, Unavailable, Work

FULL = 50  # steps of a video by default


def extrapolated(stats: Stats, steps: int = FULL) -> float:
    """Seconds of a video of `steps` steps: the median step that many times, and everything else as it was."""
    ordered = sorted(stats.steps)
    rest = sum(stats.seconds.values()) - sum(stats.steps)
    return rest + steps * ordered[len(ordered) // 2]


def work(c: Context, cfg: str) -> Work:
    if c.device.type == "meta":
        raise Unavailable("a run needs data; its graphs are those of the other phases")
    engine = c.once("engine", lambda: RandomEngine(c.variant, c.device, c.dtype))
    person = c.once("person", lambda: identity(c.variant))
    kept: list[Stats] = []

    def run() -> None:
        # A new prompt each time: the text encoder keeps what it has encoded.
        kept.append(engine.generate(person, prompt_of(len(kept)), seed=0, num_inference_steps=c.steps, cfg=cfg).stats)

    def more() -> dict[str, Any]:
        last = kept[-1]
        return {
            "steps": c.steps,
            "stage_seconds": last.seconds,
            "step_seconds": last.steps,
            "peak_reserved_gib": last.peak_bytes / 2**30,
            "not_measured_but_extrapolated": {f"seconds of {FULL} steps": extrapolated(last)},
        }

    return Work(run, note="not checked here: the step and decode phases compare the same graphs", more=more)


def cases(c: Context) -> Iterator[Case]:
    for cfg in ("batched", "sequential"):
        name = f"generate, {c.steps} steps, CFG {cfg}"
        yield Case(name, partial(work, c, cfg), repeats=3, meta=False)
