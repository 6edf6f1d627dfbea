"""What a plan would do on a machine: its stages replayed with the machine's speeds. A simulation, not a measurement.

python -m consisid.bench.tools.simulate preview --memory 5GiB --machine h200
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from consisid.engine.errors import InputError
from consisid.engine.memory import planner as memory
from consisid.engine.memory.budget import parse
from consisid.engine.memory.costs import Costs, video_costs
from consisid.engine.memory.simulate import GB, MACHINES, TFLOP, replay
from consisid.engine.shapes import VideoShape
from consisid.engine.util.cli import run
from consisid.engine.variants import VARIANTS, variant_named


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("consisid.bench.tools.simulate", description=__doc__)
    p.add_argument("variant", choices=list(VARIANTS))
    p.add_argument("--memory", action="append", help="a budget; may be repeated (default: no limit)")
    p.add_argument("--machine", action="append", help=f"of {', '.join(MACHINES)}; may be repeated (default: all)")
    p.add_argument("--tflops", type=float, help="instead of the machine's figure, such as one that was measured")
    p.add_argument("--link", type=float, metavar="GB/S", help="likewise")
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    p.add_argument("--whole-frames", action="store_true", help="without tiles in the decoder")
    return p


def steps_of(plan: memory.MemoryPlan, found: Costs) -> list[float]:
    """Seconds of stall in the first and in any later denoising step."""
    stage = next(stage for stage in found.stages if stage.name == "denoise")
    loop = plan.stage("denoise")
    halves = 2 if loop.cfg == "sequential" and len(stage.working) > 1 else 1
    if plan.held:
        return [0.0, 0.0]
    run = replay(
        stage.units, frozenset(loop.streamed), loop.buffers, 3, plan.machine,
        fixed=stage.fixed, flops=stage.flops, samples=1 if halves == 2 else 2,
    )  # fmt: skip
    return [run.stall[0] + (halves - 1) * run.stall[1], halves * run.stall[1]]


def simulate(options: argparse.Namespace) -> None:
    """The work of the command."""
    import torch

    variant = variant_named(options.variant)
    shape, dtype = VideoShape.of(variant, None, None, None), getattr(torch, options.dtype)
    found = video_costs(variant, shape, dtype, steps=options.steps, device="cuda")
    for name in options.machine or list(MACHINES):
        if name not in MACHINES:
            raise InputError(f"--machine {name} is none of {', '.join(MACHINES)}.")
        given = {"flops": (options.tflops, TFLOP), "link": (options.link, GB)}
        figures: dict[str, Any] = {key: value * unit for key, (value, unit) in given.items() if value is not None}
        sources = "; ".join([MACHINES[name].sources, *(f"given: {key}" for key in figures)])
        machine = replace(MACHINES[name], **figures, sources=sources)
        for budget in options.memory or [None]:
            plan = memory.plan(parse(budget, 0), found, machine, tiling=not options.whole_frames)
            first, later = steps_of(plan, found)
            print(plan)
            print(f"  simulated stall per step: first {first:.4f} s, later {later:.4f} s\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run("consisid.bench.tools.simulate", lambda: simulate(options))


if __name__ == "__main__":
    sys.exit(main())
