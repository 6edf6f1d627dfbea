"""The second call of a lent GPU: a whole video, diffusers beside it in turns, budgets of memory, compiled graphs."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consisid.engine.backends import backend
from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.runtime.executor import GraphExecutor
from consisid.engine.video import Stats

from ..core.baselines import EAGER, Theirs
from ..core.flops import STEP_GRAPHS, step_cost
from ..core.inputs import identity
from ..core.samples import prompt_of
from . import stream
from .cases import Case, Context, Work
from .e2e import FULL
from .first import guarded
from .step import Step
from .videos import engine_of, figures

TURNS, TURN_STEPS = 2, 4
FACE_GRAPHS, PHOTO = ("retinaface", "bisenet", "eva"), 640  # pixels of the photo's sides


def video(c: Context, stack: ExitStack, steps: int) -> Work:
    """A video of `steps` steps as uint8 frames, after a short one that is not counted."""
    engine, person, kept = engine_of(c, stack), identity(c.variant), list[Stats]()
    engine.generate(person, prompt_of(0), seed=0, num_inference_steps=2)

    def run() -> None:
        kept.append(engine.generate(person, prompt_of(1), seed=1, num_inference_steps=steps).stats)

    return Work(run, note="after one of two steps", more=lambda: figures(c, kept[-1]))


def turns(c: Context, stack: ExitStack) -> Work:
    """The loop of generate() and that of diffusers' pipeline with the same weights, in turns."""
    engine, person = engine_of(c, stack), identity(c.variant)
    theirs = Theirs(engine, person, TURN_STEPS, EAGER)
    steps: dict[str, list[float]] = {"ours": [], "diffusers": []}

    def run() -> None:
        for index in range(TURNS):
            video = engine.generate(
                person, prompt_of(index), seed=index, num_inference_steps=TURN_STEPS, output_type="latent"
            )
            steps["ours"] += video.stats.steps[1:]
            with torch.no_grad():
                steps["diffusers"] += theirs.denoise(index, *theirs.embeds(prompt_of(index)))[1]

    def more() -> dict[str, Any]:
        medians = {name: statistics.median(values) for name, values in steps.items()}
        shown = ", ".join(f"{name} {spent:.3f}" for name, spent in medians.items())
        return {"step_seconds": steps, "shown": f"a step, s: {shown}; {medians['diffusers'] / medians['ours']:.2f} x"}

    return Work(run, note=f"{TURNS} turns of {TURN_STEPS} steps each, the first of each turn not counted", more=more)


def photo(c: Context) -> Work:
    """The graphs of identify() once each; what runs on the CPU (SCRFD, ArcFace, alignment) is not in it."""
    networks = c.weights.networks(FACE_GRAPHS)
    sizes = {"H": PHOTO, "W": PHOTO}
    inputs = {}
    for name in networks.runners:
        graph = c.weights.table[name]
        inputs[name] = [spec.example(sizes, graph.dtype(c.dtype), c.device) for spec in graph.specs().values()]
    return Work(lambda: [networks(name, *inputs[name]) for name in inputs], note=", ".join(inputs))


def compile_graph(c: Context, name: str, package: Path) -> None:
    """In a process of its own; the seconds that it took lie beside the package."""
    start, module = time.perf_counter(), backend("inductor")
    module.compile(c.weights.table[name], package, c.device, c.dtype)
    package.with_suffix(".seconds").write_text(str(time.perf_counter() - start))


def packages(c: Context) -> Work:
    """The graphs of the loop as packages, all compiled at once, each in a process of its own."""
    c.need_gpu("compiling the graphs of the loop")
    names = [name for name in STEP_GRAPHS if name in c.weights.table]
    place = c.once("packages", tempfile.TemporaryDirectory)
    seconds: dict[str, float] = {}

    def run() -> None:
        spawn = multiprocessing.get_context("spawn")
        given = Context(c.variant, c.shape, c.device, c.dtype)
        files = {name: Path(place.name) / f"{name}.pt2" for name in names}
        processes = [spawn.Process(target=compile_graph, args=(given, *item)) for item in files.items()]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        finally:
            for process in processes:
                process.kill()
        seconds.update({name: float(file.with_suffix(".seconds").read_text()) for name, file in files.items()})

    def more() -> dict[str, Any]:
        return {"graphs": seconds, "shown": ", ".join(f"{name} {spent:.0f} s" for name, spent in seconds.items())}

    return Work(run if c.gpu else lambda: None, note="all at once, a process each", more=more if c.gpu else dict)


def step(c: Context, packaged: bool) -> Work:
    """A denoising step, both halves of guidance: operator by operator, or by the packages."""
    if packaged:
        c.need_gpu("a package")
    made: Step = c.once("step", lambda: Step(c))
    right: Tensor = c.once("right", made.predict)
    if not packaged or not c.gpu:
        return Work(made.predict, note="compared with diffusers in the step phase")
    networks = with_packages(c, made.networks, Path(c.once("packages", tempfile.TemporaryDirectory).name))
    return Work(lambda: made.predict(networks), c.compare(made.predict(networks), right), c.tolerance)


def with_packages(c: Context, networks: GraphExecutor, folder: Path) -> GraphExecutor:
    """The same weights under the graphs that were compiled into a folder."""
    runners = dict(networks.runners)
    for file in folder.glob("*.pt2"):
        graph = c.weights.table[file.stem]
        names = list(weight_shapes(graph.module()))
        runners[file.stem] = backend("inductor").load(graph, file, c.device, names)
    return networks.under(runners)


def videos(c: Context) -> Iterator[Case]:
    with ExitStack() as stack:
        yield Case(f"generate, {FULL} steps", lambda: video(c, stack, FULL), once=True, limit=200)
        yield Case(f"{TURNS} x {TURN_STEPS} steps, ours and diffusers", lambda: turns(c, stack), once=True, limit=120)


def graphs(c: Context) -> Iterator[Case]:
    flops = c.batch * step_cost(c.variant, c.shape).total
    if c.variant.transformer.is_train_face:
        yield Case("graphs of identify()", lambda: photo(c), repeats=5, budget=1, limit=40)
    yield Case("graphs of the loop, compiled", lambda: packages(c), once=True, limit=150)
    for packaged in (False, True):
        name = "step, packages" if packaged else "step, eager"
        yield Case(name, partial(step, c, packaged), flops, repeats=3, budget=4, limit=60)


def cases(c: Context) -> Iterator[Case]:
    for name, section in (("videos", videos), ("budgets", stream.cases), ("graphs", graphs)):
        yield from guarded(name, section, c)
