"""A step on two processors, by one process with one thread and by two processes with one each, in turns.

    python tests/parallel/step_times.py --output bench/reports/cpu-tiny-devices    (on a machine that does nothing else)

Written as .json and .md. The sums that the two make are those of the one for guidance in halves (the same bytes), and
within rounding for a ring.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
WIDTHS = {3: ("cfg=2", "ring=2"), 16: ("cfg=2", "ulysses=2", "ring=2")}  # heads, TINY's and more, and meshes
STEPS = 8


def steps_of(engine: Any, person: Any) -> list[float]:
    """Seconds of the steps of a video, but the first."""
    made = engine.generate(person, "A person walks.", seed=1, num_inference_steps=STEPS, output_type="latent")
    found: list[float] = made.stats.steps[1:]
    return found


def measured(folder: Path, mesh: str, turns: int) -> dict[str, Any]:
    """Medians of both in each turn."""
    from support.people import random_identity

    from consisid.engine import ConsisID

    one, two = ConsisID.open(folder), ConsisID.open(folder, devices=2, mesh=mesh)
    person, times = random_identity(one.variant), {"one": list[float](), "two": list[float]()}
    processors = sorted(os.sched_getaffinity(0))
    try:
        for turn in range(turns + 1):
            os.sched_setaffinity(0, processors[:1])  # as each of the two has
            alone = statistics.median(steps_of(one, person))
            os.sched_setaffinity(0, processors)
            together = statistics.median(steps_of(two, person))
            if turn:  # the first warms up
                times["one"].append(alone)
                times["two"].append(together)
    finally:
        os.sched_setaffinity(0, processors)
        two.close()
    gains = [alone / together for alone, together in zip(times["one"], times["two"], strict=True)]
    return {
        "heads": one.variant.transformer.num_attention_heads,
        "mesh": mesh,
        **times,
        "gain": statistics.quantiles(gains, n=4),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    from consisid.bench.core.environment import stamp
    from consisid.bench.core.tables import made_by, table, write_files
    from consisid.engine.variants import TINY
    from consisid.export import build

    p = argparse.ArgumentParser("step_times", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--output", type=Path, default=ROOT / "bench" / "reports" / "cpu-tiny-devices")
    p.add_argument("--turns", type=int, default=20, help="pairs (default 20)")
    options = p.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for heads, meshes in WIDTHS.items():
        with tempfile.TemporaryDirectory() as place:
            variant = replace(TINY, name="custom", transformer=replace(TINY.transformer, num_attention_heads=heads))
            build(variant, Path(place) / "engine", backend="eager", random_weights=True)
            rows += [measured(Path(place) / "engine", mesh, options.turns) for mesh in meshes]
    made = stamp(torch.device("cpu")) | {"command": "python tests/parallel/step_times.py"}
    lines = [
        (str(row["heads"]), row["mesh"], *(f"{1000 * statistics.median(row[who]):.1f}" for who in ("one", "two")),
         f"{row['gain'][1]:.2f} ({row['gain'][0]:.2f} to {row['gain'][2]:.2f})")
        for row in rows
    ]  # fmt: skip
    text = "\n".join([
        "# A step on two processors", "", made_by(made), "", f"`{made['command']}`", "",
        f"TINY with random weights, and with more heads. {options.turns} turns of {STEPS} steps, the first of each "
        "left out; one process with one thread on one processor, and two processes with one each, one after the other. "
        "Milliseconds, medians; the gain is of each turn, its median and quartiles.", "",
        *table(("heads", "mesh", "one process, ms", "two processes, ms", "gain"), lines), "",
    ])  # fmt: skip
    folder, name = options.output.parent, options.output.name
    values = {"rows": rows, "turns": options.turns, "steps": STEPS, "made": made}
    write_files(folder, {f"{name}.json": json.dumps(values, indent=1) + "\n", f"{name}.md": text})
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
