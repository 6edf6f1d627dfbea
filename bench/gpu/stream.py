"""Short videos within budgets of device memory, by the engine's own plans: what is reserved against what was predicted,
seconds of a step, and how long it waited for weights."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from consisid.engine.memory.budget import parse
from consisid.engine.video import Stats

from ..core.inputs import identity
from ..core.samples import prompt_of, within
from .cases import Case, Context, Work
from .videos import engine_of, figures

BUDGETS, STEPS = ("24GiB", "8GiB", "5GiB", "3GiB"), 3


def video(c: Context, stack: ExitStack, memory: str) -> Work:
    """A video within a budget, by an engine that was opened with the largest."""
    engine, person, kept = engine_of(c, stack, BUDGETS[0]), identity(c.variant), list[Stats]()
    budget = parse(memory, 0)
    assert budget is not None

    def run() -> None:
        with within(engine, budget):
            kept.append(engine.generate(person, prompt_of(2), seed=2, num_inference_steps=STEPS).stats)

    return Work(run, note="opening the engine is not counted", more=lambda: figures(c, kept[-1]))


def cases(c: Context) -> Iterator[Case]:
    with ExitStack() as stack:
        for memory in BUDGETS:
            yield Case(f"generate, {STEPS} steps, {memory}", partial(video, c, stack, memory), once=True, limit=75)
