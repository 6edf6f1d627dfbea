"""The second call of a lent GPU: a whole video, diffusers beside it in turns, budgets of memory, compiled graphs."""

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from ..core.baselines import Diffusers
from ..core.flops import STEP_GRAPHS, step_cost
from ..core.inputs import identity
from ..core.samples import Maker, Ours, Resident, alternate
from . import step
from .cases import Case, Context, Work, guarded
from .compiling import Compiling
from .videos import FULL, engine_of, stream, video

TURNS, TURN_STEPS = 2, 4
FACE_GRAPHS, PHOTO = ("retinaface", "bisenet", "eva"), 640  # pixels of the photo's sides


def turns(c: Context, stack: ExitStack) -> Work:
    """The loop of generate() and that of diffusers' pipeline with the same weights, in turns after one that is not
    counted."""
    engine, person = engine_of(c, stack), identity(c.variant)
    ours = Ours(engine, person, TURN_STEPS, "latent")
    makers: dict[str, Maker] = {"ours": ours, "diffusers": Diffusers(engine, person, TURN_STEPS, frames=False)}
    steps: dict[str, list[float]] = {}

    def run() -> None:
        for name, samples in alternate(makers, TURNS, Resident(c.device)).items():
            # Of diffusers the first step has no mark before it.
            steps[name] = [seconds for sample in samples for seconds in sample.steps[1 - TURN_STEPS :]]

    def more() -> dict[str, Any]:
        medians = {name: statistics.median(values) for name, values in steps.items()}
        shown = ", ".join(f"{name} {spent:.3f}" for name, spent in medians.items())
        return {"step_seconds": steps, "shown": f"a step, s: {shown}; {medians['diffusers'] / medians['ours']:.2f} x"}

    return Work(run, note=f"{TURNS} turns of {TURN_STEPS} steps each", more=more)


def photo(c: Context) -> Work:
    """The graphs of identify() once each; what runs on the CPU (SCRFD, ArcFace, alignment) is not in it."""
    networks = c.weights.networks(FACE_GRAPHS)
    sizes = {"H": PHOTO, "W": PHOTO}
    inputs = {}
    for name in networks.runners:
        graph = c.weights.table[name]
        inputs[name] = [spec.example(sizes, graph.dtype(c.dtype), c.device) for spec in graph.specs().values()]
    return Work(lambda: [networks(name, *inputs[name]) for name in inputs], note=", ".join(inputs))


def packages(c: Context, made: list[Compiling]) -> Work:
    """The graphs of the loop as packages, all compiled at once, each in a process of its own; kept in `made`."""
    c.need_gpu("compiling the graphs of the loop")
    if not c.gpu:
        return Work(lambda: None, note="nothing is compiled without data")

    def run() -> None:
        made.append(Compiling(c, [name for name in STEP_GRAPHS if name in c.weights.table]))
        try:
            made[-1].wait()
        finally:
            made[-1].close()

    def more() -> dict[str, Any]:
        seconds = made[-1].seconds
        return {"graphs": seconds, "shown": ", ".join(f"{name} {spent:.0f} s" for name, spent in seconds.items())}

    return Work(run, note="all at once, a process each", more=more)


def videos(c: Context) -> Iterator[Case]:
    with ExitStack() as stack:
        yield Case(f"generate, {FULL} steps", lambda: video(c, stack, FULL, warm=True), once=True, limit=200)
        yield Case(f"{TURNS} x {TURN_STEPS} steps, ours and diffusers", lambda: turns(c, stack), once=True, limit=120)


def graphs(c: Context) -> Iterator[Case]:
    made = list[Compiling]()
    if c.variant.transformer.is_train_face:
        yield Case("graphs of identify()", lambda: photo(c), repeats=5, budget=1, limit=40)
    yield Case("graphs of the loop, compiled", lambda: packages(c, made), once=True, limit=150)
    case = partial(Case, flops=step.STEPS * c.batch * step_cost(c.variant, c.shape).total, repeats=3, limit=60)
    with ExitStack() as stack:
        yield case(f"{step.STEPS} x step, eager", lambda: step.ours(c, stack, "eager"))
        yield case(f"{step.STEPS} x step, packages", lambda: step.packaged(c, stack, made))


def cases(c: Context) -> Iterator[Case]:
    for name, section in (("videos", videos), ("budgets", stream), ("graphs", graphs)):
        yield from guarded(name, section, c)
