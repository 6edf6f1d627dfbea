"""Calls of a GPU that is there for minutes: `first`, one row per question, the ones that decide most first; `second`, a
whole video, diffusers beside it in turns, budgets of memory, compiled graphs. Other processes compile meanwhile."""

import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from consisid.engine.backends import backend

from ..core.baselines import Diffusers
from ..core.flops import STEP_GRAPHS, step_cost
from ..core.inputs import identity
from ..core.samples import Maker, Ours, Resident, alternate
from ..core.weights import load_graph
from . import coders, parts
from .cases import Case, Context, Work, guarded
from .videos import FULL, STEPS, loop, stream, torch_compiled, video


class Compiling:
    """Packages of AOTInductor, all compiled at once.

    Attributes:
        seconds: of each graph, when `wait` has returned.
    """

    def __init__(self, c: Context, names: Sequence[str]):
        self._folder = TemporaryDirectory()
        self.files = {name: Path(self._folder.name) / f"{name}.pt2" for name in names}
        self.seconds: dict[str, float] = {}
        spawn, given = multiprocessing.get_context("spawn"), replace(c, _made={})
        self._processes: list[Any] = [
            spawn.Process(target=compile_graph, args=(given, *item)) for item in self.files.items()
        ]
        for process in self._processes:
            process.start()

    def wait(self) -> None:
        """Raises RuntimeError where a process failed; what it printed stands above."""
        for process in self._processes:
            process.join()
        codes = [process.exitcode for process in self._processes]
        if any(codes):
            raise RuntimeError(f"the processes that compile ended with {codes}")
        self.seconds = {name: float(file.with_suffix(".seconds").read_text()) for name, file in self.files.items()}

    def load(self, c: Context) -> dict[str, Any]:
        """Each graph by its package."""
        return {name: load_graph("inductor", c.weights.table[name], file, c.device)
                for name, file in self.files.items()}  # fmt: skip

    def close(self) -> None:
        for process in self._processes:
            process.kill()


def compile_graph(c: Context, name: str, package: Path) -> None:
    """In a process of its own; the seconds that it took lie beside the package."""
    start, module = time.perf_counter(), backend("inductor")
    module.compile(c.weights.table[name], package, c.device, c.dtype)
    package.with_suffix(".seconds").write_text(str(time.perf_counter() - start))


SHORT = 0.5  # seconds of timing per row
BUDGET, BUDGET_STEPS = "5GiB", 2


def hardware(c: Context) -> Iterator[Case]:
    for case in parts.ceilings(c):
        yield replace(case, repeats=10, budget=SHORT, limit=20)


def attentions(c: Context) -> Iterator[Case]:
    for case in parts.attention(c):
        yield replace(case, repeats=10, budget=SHORT, limit=60)


def one_video(c: Context, steps: int, memory: str | None) -> Iterator[Case]:
    name = f"generate, {steps} steps" + (f", {memory}" if memory else "")
    yield Case(name, partial(video, c, steps, opened={"memory": memory}), once=True, limit=120)


def decoding(c: Context) -> Iterator[Case]:
    for case in coders.decode(c):
        if case.name.endswith(("contiguous", "diffusers")):
            yield replace(case, repeats=1, limit=60)


def compiled(c: Context, ahead: Compiling | None, packaged: bool) -> Work:
    """The block as a package or by torch.compile, with the weights and inputs of the eager one."""
    c.need_gpu("compiling the block")
    made: parts.Block = c.once("block", lambda: parts.Block(c))
    if ahead is None:
        return Work(made.block, note="nothing is compiled without data")
    if packaged:
        ahead.wait()
    runners = made.networks.runners
    networks = made.networks.under({**runners, **ahead.load(c)} if packaged else torch_compiled(runners))

    def run() -> Tensor:
        return networks.one("block", made.hidden, made.modulation, made.cos, made.sin)

    return Work(run, c.compare(run(), made.block()), c.tolerance)


def compiling(c: Context, ahead: Compiling | None) -> Iterator[Case]:
    for name in ("package of AOTInductor", "torch.compile"):
        make = partial(compiled, c, ahead, name.startswith("package"))
        yield Case(f"block, {name}", make, repeats=10, budget=SHORT, limit=75)


def waiting(ahead: Compiling) -> Work:
    ahead.wait()
    return Work(lambda: None, note="the processes that compile ahead have ended")


def first(c: Context) -> Iterator[Case]:
    ahead = Compiling(c, ["block"]) if c.gpu else None
    try:
        yield from guarded("kernels", parts.kernels, c)
        if ahead is not None:
            yield Case("waiting for what compiles ahead", partial(waiting, ahead), once=True, limit=100)
        for section in (hardware, parts.whole, attentions):
            yield from guarded(section.__name__, section, c)
        yield from guarded("videos", partial(one_video, steps=c.steps, memory=None), c)
        yield from guarded("decoding", decoding, c)
        yield from guarded("budgets", partial(one_video, steps=BUDGET_STEPS, memory=BUDGET), c)
        yield from guarded("compiling", partial(compiling, ahead=ahead), c)
    finally:
        if ahead is not None:
            ahead.close()


TURNS = 2
FACE_GRAPHS, PHOTO = ("retinaface", "bisenet", "eva"), 640  # pixels of the photo's sides


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
    yield Case(f"generate, {FULL} steps", partial(video, c, FULL, warm=True), once=True, limit=200)
    yield Case(f"{TURNS} x {STEPS} steps, ours and diffusers", partial(turns, c), once=True, limit=120)


def packaged(c: Context, made: list[Compiling]) -> Work:
    """The loop by packages of AOTInductor."""
    c.need_gpu("a package")
    packages = made[-1].load(c) if made else {}
    return loop(c, "packages", lambda runners: {**runners, **packages})


def graphs(c: Context) -> Iterator[Case]:
    made = list[Compiling]()
    if c.variant.transformer.is_train_face:
        yield Case("graphs of identify()", lambda: photo(c), repeats=5, budget=1, limit=40)
    yield Case("graphs of the loop, compiled", lambda: packages(c, made), once=True, limit=150)
    case = partial(Case, flops=STEPS * c.batch * step_cost(c.variant, c.shape).total, repeats=3, limit=60)
    yield case(f"{STEPS} x step, eager", lambda: loop(c, "eager"))
    yield case(f"{STEPS} x step, packages", lambda: packaged(c, made))


def second(c: Context) -> Iterator[Case]:
    for name, section in (("videos", videos), ("budgets", stream), ("graphs", graphs)):
        yield from guarded(name, section, c)
