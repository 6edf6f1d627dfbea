"""What the rows that make whole videos share: an engine with random weights, and the figures of a video."""

import statistics
from contextlib import ExitStack
from typing import Any

import torch

from consisid.engine import ConsisID
from consisid.engine.video import Stats

from ..core.random_folder import random_folder
from .cases import Context, Unavailable

SHOWN = 5  # steps of a video in the terminal


def engine_of(c: Context, stack: ExitStack, memory: str | None = None) -> ConsisID:
    """An engine with random weights, opened once per section; its folder, where diffusers looks for the tokenizer, is
    there as long as the stack."""
    if c.device.type == "meta":
        raise Unavailable("an engine needs a device with data")

    def made() -> ConsisID:
        folder = stack.enter_context(random_folder(c.variant, c.device, c.dtype))
        return ConsisID.open(folder, memory=memory)

    return c.once("engine", made)


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
