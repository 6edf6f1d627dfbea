"""Calls of a GPU that is there for minutes: `first`, one row per question, the ones that decide most first; `second`, a
whole video, diffusers beside it in turns, budgets of memory."""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from ..core.baselines import Diffusers
from ..core.inputs import identity
from ..core.samples import Maker, Ours, Resident, alternate
from . import coders, parts
from .cases import Case, Context, Work, guarded
from .videos import FULL, STEPS, stream, video

SHORT = 0.5  # seconds of timing per row
BUDGET, BUDGET_STEPS = "5GiB", 2
TURNS = 2
FACE_GRAPHS = ("retinaface", "bisenet", "eva")


def shortened(cases: Iterable[Case], limit: float) -> Iterator[Case]:
    for case in cases:
        yield replace(case, repeats=10, budget=SHORT, limit=limit)


def one_video(c: Context, steps: int, memory: str | None) -> Iterator[Case]:
    name = f"generate, {steps} steps" + (f", {memory}" if memory else "")
    yield Case(name, partial(video, c, steps, opened={"memory": memory}), once=True, limit=120)


def decoding(c: Context) -> Iterator[Case]:
    for case in coders.decode(c):
        if case.name.endswith(("contiguous", "diffusers")):
            yield replace(case, repeats=1, limit=60)


def first(c: Context) -> Iterator[Case]:
    yield from guarded("kernels", parts.kernels, c)
    yield from guarded("hardware", lambda c: shortened(parts.ceilings(c), 20), c)
    yield from guarded("graphs of a block", parts.graphs, c)
    yield from guarded("attention", lambda c: shortened(parts.attention(c), 60), c)
    yield from guarded("videos", partial(one_video, steps=c.steps, memory=None), c)
    yield from guarded("decoding", decoding, c)
    yield from guarded("budgets", partial(one_video, steps=BUDGET_STEPS, memory=BUDGET), c)


def turns(c: Context) -> Work:
    """The loop of generate() and that of diffusers' pipeline with the same weights, in turns after one that is not
    counted."""
    engine, person = c.engine(), identity(c.variant)
    theirs = Diffusers(engine, person, STEPS, frames=False)
    makers: dict[str, Maker] = {"ours": Ours(engine, person, STEPS, "latent"), "diffusers": theirs}
    steps: dict[str, list[float]] = {}

    def run() -> None:
        for name, samples in alternate(makers, TURNS, Resident(c.device)).items():
            # Of diffusers the first step has no mark before it.
            steps[name] = [seconds for sample in samples for seconds in sample.steps[1 - STEPS :]]

    def more() -> dict[str, Any]:
        medians = {name: statistics.median(values) for name, values in steps.items()}
        shown = ", ".join(f"{name} {spent:.3f}" for name, spent in medians.items())
        return {"step_seconds": steps, "shown": f"a step, s: {shown}; {medians['diffusers'] / medians['ours']:.2f} x"}

    return Work(run, note=f"{TURNS} turns of {STEPS} steps each", more=more)


def videos(c: Context) -> Iterator[Case]:
    yield Case(f"generate, {FULL} steps", partial(video, c, FULL, warm=True), once=True, limit=200)
    yield Case(f"{TURNS} x {STEPS} steps, ours and diffusers", partial(turns, c), once=True, limit=120)


def second(c: Context) -> Iterator[Case]:
    yield from guarded("videos", videos, c)
    yield from guarded("budgets", stream, c)
    yield from guarded("graphs of identify()", partial(parts.graphs, names=FACE_GRAPHS), c)
