"""Denoising steps, both halves of guidance: by the engine, with its CUDA graphs, compiled, and by diffusers.

Each row is a whole loop, which ends at the latents, with the same weights, prompt and noise; `shown` has a step.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from consisid.engine import ConsisID

from ..core.baselines import Diffusers
from ..core.flops import step_cost
from ..core.inputs import PROMPT, identity
from .cases import Case, Context, Unavailable, Work
from .compiling import Compiling, torch_compiled
from .videos import engine_of

STEPS = 4


class Loops:
    """The loop by an engine with random weights, under any runners of its graphs.

    Attributes:
        right: the latents of the engine as it is.
    """

    def __init__(self, engine: ConsisID):
        self.engine, self.person, self.steps = engine, identity(engine.variant), list[float]()
        self.right = self.latents()

    def latents(self, runners: Callable[[dict[str, Any]], dict[str, Any]] = dict, **options: Any) -> Tensor:
        """Final latents; seconds of the steps are kept."""
        networks = self.engine.networks()
        before, networks.runners = networks.runners, runners(dict(networks.runners))
        try:
            made = self.engine.generate(
                self.person, PROMPT, seed=1, num_inference_steps=STEPS, output_type="latent", **options
            )
        finally:
            networks.runners = before
        self.steps = made.stats.steps
        latents: Tensor = made.latents
        return latents

    def row(self, c: Context, run: Callable[[], Tensor]) -> Work:
        def more() -> dict[str, Any]:
            return {"step_seconds": self.steps, "shown": f"a step: {statistics.median(self.steps):.4f} s"}

        # Latents, not one prediction: what rounding adds up to in all steps.
        return Work(run, c.compare(run(), self.right), 5 * c.tolerance, "of all steps", more)


def ours(c: Context, stack: ExitStack, kind: str) -> Work:
    cuda_graphs, compiled = kind == "CUDA graph", kind == "compiled"
    if cuda_graphs:
        c.need_gpu("a CUDA graph")
    if compiled and c.device.type == "cpu":
        raise Unavailable("compiling takes minutes on a CPU and answers nothing about a GPU")
    engine = engine_of(c, stack, cuda_graphs=cuda_graphs)
    loops: Loops = c.once(("loops", cuda_graphs), lambda: Loops(engine))
    cfg = "sequential" if kind == "sequential" else "batched"
    return loops.row(c, partial(loops.latents, torch_compiled if compiled else dict, cfg=cfg))


def packaged(c: Context, stack: ExitStack, made: list[Compiling]) -> Work:
    """The loop by packages of AOTInductor."""
    c.need_gpu("a package")
    loops: Loops = c.once(("loops", False), lambda: Loops(engine_of(c, stack)))
    packages = made[-1].load(c)
    return loops.row(c, partial(loops.latents, lambda runners: {**runners, **packages}, cfg="batched"))


def theirs(c: Context, stack: ExitStack) -> Work:
    """diffusers' pipeline with the same weights; it draws other numbers."""
    engine = engine_of(c, stack)
    pipeline = Diffusers(engine, identity(engine.variant), STEPS, frames=False)
    with torch.no_grad():
        embeds = pipeline.embeds(PROMPT)
    steps: list[float] = []

    def run() -> None:
        steps[:] = pipeline.denoise(1, *embeds)[1]

    note = "not compared here: consisid-bench says how far both are from float32"
    return Work(run, note=note, more=lambda: {"step_seconds": steps, "shown": f"{statistics.median(steps):.4f} s"})


def cases(c: Context) -> Iterator[Case]:
    flops = STEPS * c.batch * step_cost(c.variant, c.shape).total
    case = partial(Case, flops=flops, repeats=3)
    with ExitStack() as stack:
        for kind in ("eager", "sequential", "CUDA graph", "compiled"):
            yield case(f"{STEPS} x step, {kind}", partial(ours, c, stack, kind))
        whole = STEPS * c.batch * step_cost(c.variant, c.shape, folded=False, whole=True).total
        yield Case(f"{STEPS} x step, diffusers", partial(theirs, c, stack), whole, repeats=3, foreign=True)
