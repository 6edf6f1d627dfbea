"""Rows that make whole videos with random weights: by the engine's own plans within budgets of device memory, and what
was measured at N steps with what follows for 50 by arithmetic."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import torch

from consisid.engine import ConsisID
from consisid.engine.memory.budget import parse
from consisid.engine.video import Stats

from ..core.flops import decode_flops, step_cost
from ..core.inputs import identity, prompt_of
from ..core.samples import within
from ..core.weights import random_folder
from .cases import Case, Context, Unavailable, Work

FULL = 50  # steps of a video by default
BUDGETS, BUDGET_STEPS = ("24GiB", "8GiB", "5GiB", "3GiB"), 3
SHOWN = 5  # steps of a video in the terminal


def engine_of(c: Context, stack: ExitStack, memory: str | None = None, cuda_graphs: bool = False) -> ConsisID:
    """An engine with random weights, opened once per section; its folder, where diffusers looks for the tokenizer, is
    there as long as the stack."""
    if c.device.type == "meta":
        raise Unavailable("an engine needs a device with data")

    def made() -> ConsisID:
        folder = stack.enter_context(random_folder(c.variant, c.device, c.dtype))
        return ConsisID.open(folder, memory=memory, cuda_graphs=cuda_graphs)

    engine: ConsisID = c.once(("engine", cuda_graphs), made)
    return engine


def video(
    c: Context, stack: ExitStack, steps: int, *, memory: str | None = None, budget: str | None = None,
    cfg: str | None = None, warm: bool = False, also: Callable[[Stats], dict[str, Any]] = lambda stats: {},
) -> Work:  # fmt: skip
    """generate(), with the figures of its last video.

    Args:
        memory: what the engine is opened with.
        budget: what this video keeps to.
        warm: after a video of two steps that is not counted.
        also: further figures.
    """
    engine, person, kept = engine_of(c, stack, memory), identity(c.variant), list[Stats]()
    limit = parse(budget, 0)
    if warm:
        engine.generate(person, prompt_of(0), seed=0, num_inference_steps=2)

    def run() -> None:
        with nullcontext() if limit is None else within(engine, limit):
            # A new prompt each time: the text encoder keeps what it has encoded.
            prompt = prompt_of(1 + len(kept))
            kept.append(engine.generate(person, prompt, seed=1, num_inference_steps=steps, cfg=cfg).stats)

    note = "after one of two steps" if warm else "opening the engine is not counted"
    return Work(run, note=note, more=lambda: also(kept[-1]) | figures(c, kept[-1]))


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


def extrapolated(stats: Stats, steps: int = FULL) -> dict[str, Any]:
    """Seconds of a video of `steps` steps: the median step that many times, and everything else as it was."""
    rest = sum(stats.seconds.values()) - sum(stats.steps)
    seconds = rest + steps * sorted(stats.steps)[len(stats.steps) // 2]
    return {"steps": len(stats.steps), "not_measured_but_extrapolated": {f"seconds of {steps} steps": seconds}}


def stream(c: Context) -> Iterator[Case]:
    """By an engine that was opened with the largest budget."""
    with ExitStack() as stack:
        for budget in BUDGETS:

            def make(budget: str = budget) -> Work:
                return video(c, stack, BUDGET_STEPS, memory=BUDGETS[0], budget=budget)

            yield Case(f"generate, {BUDGET_STEPS} steps, {budget}", make, once=True, limit=75)


def e2e(c: Context) -> Iterator[Case]:
    flops = 2 * c.steps * step_cost(c.variant, c.shape).total + decode_flops(c.variant, c.shape)
    with ExitStack() as stack:
        for cfg in ("batched", "sequential"):

            def make(cfg: str = cfg) -> Work:
                return video(c, stack, c.steps, cfg=cfg, also=extrapolated)

            yield Case(f"generate, {c.steps} steps, CFG {cfg}", make, flops, repeats=3)
