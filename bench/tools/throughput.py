"""Videos an hour: `python -m consisid.bench.tools.throughput ENGINE --output DIR`.

Measured with an engine, by how many videos go through the weights together, within budgets, exact and with the step
cache; and for the preview at full size what plans of the memory predict, which is arithmetic and no measurement.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from consisid.engine import ConsisID, Shortcuts
from consisid.engine.errors import InputError, MemoryBudgetError
from consisid.engine.memory.budget import show
from consisid.engine.memory.costs import video_costs
from consisid.engine.memory.planner import plan
from consisid.engine.memory.simulate import MACHINES
from consisid.engine.shapes import VideoShape
from consisid.engine.shortcuts import Loop
from consisid.engine.util.cli import run
from consisid.engine.variants import PREVIEW

from ..core.environment import stamp
from ..core.inputs import identity, prompt_of
from ..core.tables import made_by, table, write_files
from ..core.timing import now

TOGETHER = (1, 2, 4)
CACHED = "2x"
GIB = 2**30
PREDICTED = [(name, budget) for name in ("h100", "rtx4090") for budget in (None, 24, 12, 8, 5, 3)]


def measured(engine: ConsisID, budgets: Sequence[str | None], steps: int, videos: int) -> list[dict[str, Any]]:
    """Videos an hour by budget, number at once, exact and cached."""
    found, person = [], identity(engine.variant)
    engine.generate(person, prompt_of(0), seed=0, num_inference_steps=2)  # what loads late
    for budget in budgets:
        with_budget = ConsisID.open(engine.folder, engine.device, memory=budget)
        for together in TOGETHER:
            for cache in (None, CACHED):
                given = {"identity": person, "num_inference_steps": steps, "shortcuts": Shortcuts(cache=cache)}
                requests = [{**given, "prompt": prompt_of(i), "seed": i} for i in range(videos)]
                start = now(engine.device)
                jobs = [job.result() for job in with_budget.generate_many(requests, together=together)]
                spent = now(engine.device) - start
                row = {"budget": budget or "none", "together": together, "cache": cache or "exact"}
                found.append({**row, "per_hour": 3600 * len(jobs) / spent, "seconds": spent, "videos": len(jobs)})
    return found


def predicted(steps: int = 50) -> list[dict[str, Any]]:
    """The same for the preview at full size, by arithmetic on the speeds of machines."""
    shape, found = VideoShape.of(PREVIEW, None, None, None), []
    half = Loop(steps // 2, steps, keeps=True)  # what "2x" comes to
    for machine, budget in PREDICTED:
        limit = None if budget is None else budget * GIB
        for together in TOGETHER:
            for name, loop in (("exact", None), (CACHED, half)):
                given = {"steps": steps, "device": "cuda", "loop": loop, "beside": together}
                sizes = video_costs(PREVIEW, shape, torch.bfloat16, **given)
                try:
                    made = plan(limit, sizes, MACHINES[machine], tiling=True)
                except MemoryBudgetError:
                    continue
                row = {"budget": "none" if limit is None else show(limit), "together": together, "cache": name}
                found.append({"machine": machine, **row, "per_hour": 3600 * together / made.seconds, "mode": made.mode})
    return found


def grid(rows: Sequence[dict[str, Any]], *keys: str) -> list[str]:
    """A line for each value of the keys, a column for each way."""
    ways = [(count, name) for count in TOGETHER for name in ("exact", CACHED)]
    found: dict[tuple[str, ...], dict[tuple[int, str], float]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[key]) for key in keys), {})[row["together"], row["cache"]] = row["per_hour"]
    heading = (*keys, *(f"{count} at once, {name}" for count, name in ways))
    return table(
        heading, [(*key, *(f"{of[way]:.4g}" if way in of else "-" for way in ways)) for key, of in found.items()]
    )


def work(options: argparse.Namespace) -> None:
    if options.steps < 2 or options.videos < 1:
        raise InputError(f"--steps {options.steps} has to be at least 2 and --videos {options.videos} at least 1.")
    engine = ConsisID.open(options.engine)
    rows, arithmetic = measured(engine, [None, *options.budget], options.steps, options.videos), predicted()
    made = stamp(engine.device)
    text = "\n".join(
        [f"# Videos an hour: {engine.variant.name}, {engine.shape}, {options.steps} steps", "", made_by(made), "",
         f"`{made['command']}`", "", "## Measured", "", *grid(rows, "budget"), "",
         "## Predicted for the preview at full size, 50 steps", "",
         "Arithmetic on plans of the memory and stated speeds (engine/memory/simulate.py), no measurement.", "",
         *grid(arithmetic, "machine", "budget"), ""]
    )  # fmt: skip
    values = {"measured": rows, "predicted": arithmetic, "made": made}
    write_files(options.output, {"throughput.json": json.dumps(values, indent=1) + "\n", "throughput.md": text})
    print(text)


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser("python -m consisid.bench.tools.throughput", description="Videos an hour.")
    p.add_argument("engine", type=Path, help="engine folder made by consisid-build")
    p.add_argument("--output", type=Path, required=True, help="folder for throughput.json and throughput.md")
    p.add_argument("--budget", nargs="*", default=[], help="budgets of memory besides none, such as 8GiB")
    p.add_argument("--steps", type=int, default=10, help="denoising steps (default 10)")
    p.add_argument("--videos", type=int, default=4, help="in each measurement (default 4)")
    options = p.parse_args(arguments)
    return run("throughput", lambda: work(options), stages=False)


if __name__ == "__main__":
    sys.exit(main())
