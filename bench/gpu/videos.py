"""Rows that generate() makes with random weights: steps of the loop in every mode, videos within budgets of device
memory by the engine's own plans, and whole videos."""

import statistics
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from consisid.engine.memory.budget import parse
from consisid.engine.video import Stats

from ..core.baselines import Diffusers
from ..core.flops import decode_flops, step_cost
from ..core.inputs import identity, prompt_of
from ..core.samples import within
from .cases import Case, Context, Work

FULL = 50  # steps of a video by default
STEPS = 4  # of a row about steps
BUDGETS, BUDGET_STEPS = ("24GiB", "8GiB", "5GiB", "3GiB"), 3
SHOWN = 5  # steps of a video in the terminal


def video(
    c: Context, steps: int, *, budget: str | None = None, warm: bool = False, opened: dict[str, Any] | None = None,
    **options: Any,
) -> Work:  # fmt: skip
    """generate() with some options, with the figures of its last video.

    Args:
        budget: what this video keeps to.
        warm: after a video of two steps that is not counted.
        opened: options of the engine.
    """
    engine, person, kept = c.engine(**(opened or {})), identity(c.variant), list[Stats]()
    limit = parse(budget, 0)
    if warm:
        engine.generate(person, prompt_of(0), seed=0, num_inference_steps=2)

    def run() -> None:
        # A new prompt each time: the text encoder keeps what it has encoded.
        prompt = prompt_of(1 + len(kept))
        with nullcontext() if limit is None else within(engine, limit):
            kept.append(engine.generate(person, prompt, seed=1, num_inference_steps=steps, **options).stats)

    note = "after one of two steps" if warm else "opening the engine is not counted"
    return Work(run, note=note, more=lambda: figures(c, kept[-1]))


def figures(c: Context, stats: Stats) -> dict[str, Any]:
    """Of a video, for its row; `shown` is for the terminal."""
    found: dict[str, Any] = {
        "stage_seconds": stats.seconds, "step_seconds": stats.steps, "stalls": stats.stalls, "modes": stats.modes,
        "peak_reserved_gib": stats.peak_bytes / 2**30, "allocated_gib": stats.allocated_bytes / 2**30,
        "predicted_gib": stats.predicted_bytes and stats.predicted_bytes / 2**30,
        "stage_gib": {name: size / 2**30 for name, size in stats.stage_bytes.items()},
        "streamed_gb": stats.streamed_bytes / 1e9,
    }  # fmt: skip
    if c.gpu:
        free, total = torch.cuda.mem_get_info(c.device)
        found["cuda_itself_gib"] = (total - free - torch.cuda.memory_reserved(c.device)) / 2**30
    stages = " ".join(f"{name} {spent:.2f}" for name, spent in stats.seconds.items())
    steps = " ".join(f"{spent:.3f}" for spent in stats.steps[:SHOWN]) + " ..." * (len(stats.steps) > SHOWN)
    if stats.steps:
        steps += f", median {statistics.median(stats.steps):.4f}"
    sizes = ", ".join(
        f"{key.removesuffix('_gib').replace('_', ' ')} {found[key]:.2f}"
        for key in ("peak_reserved_gib", "predicted_gib", "allocated_gib", "cuda_itself_gib")
        if found.get(key) is not None
    )
    shown = f"s: {stages}; steps {steps}; GiB: {sizes}"
    return found | {"shown": shown + (f"; stalls {sum(stats.stalls):.3f} s" if stats.stalls else "")}


def loop(c: Context, kind: str) -> Work:
    """The loop up to the latents; the tests compare the modes with each other and with diffusers."""
    cfg = "sequential" if kind == "sequential" else "batched"
    if kind == "CUDA graph":
        c.need_gpu("a CUDA graph")
    opened = {"cuda_graphs": True} if kind == "CUDA graph" else {}
    return video(c, STEPS, warm=True, opened=opened, output_type="latent", cfg=cfg)


def loop_of_diffusers(c: Context) -> Work:
    """diffusers' pipeline with the same weights, up to the latents."""
    engine = c.engine()
    theirs, steps = Diffusers(engine, identity(c.variant), STEPS, frames=False), list[float]()

    def run() -> None:
        steps[:] = theirs(1 + len(steps)).steps

    def more() -> dict[str, Any]:
        return {"step_seconds": steps, "shown": f"median step {statistics.median(steps):.4f} s"}

    return Work(run, note="consisid-bench says how far both are from float32", more=more)


def step(c: Context) -> Iterator[Case]:
    flops = STEPS * c.batch * step_cost(c.variant, c.shape).total
    whole = STEPS * c.batch * step_cost(c.variant, c.shape, folded=False, whole=True).total
    for kind in ("eager", "sequential", "CUDA graph"):
        yield Case(f"{STEPS} x step, {kind}", partial(loop, c, kind), flops, repeats=3)
    yield Case(f"{STEPS} x step, diffusers", partial(loop_of_diffusers, c), whole, repeats=3, foreign=True)


def stream(c: Context) -> Iterator[Case]:
    """By an engine that was opened with the largest budget."""
    for budget in BUDGETS:
        make = partial(video, c, BUDGET_STEPS, opened={"memory": BUDGETS[0]}, budget=budget)
        yield Case(f"generate, {BUDGET_STEPS} steps, {budget}", make, once=True, limit=75)


def e2e(c: Context) -> Iterator[Case]:
    flops = 2 * c.steps * step_cost(c.variant, c.shape).total + decode_flops(c.variant, c.shape)
    for cfg in ("batched", "sequential"):
        make = partial(video, c, c.steps, cfg=cfg)
        yield Case(f"generate, {c.steps} steps, CFG {cfg}", make, flops, repeats=3)
