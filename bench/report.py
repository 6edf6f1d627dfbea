"""A report of an engine folder: seconds per stage and step, each row with what made it."""

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from consisid.engine import ConsisID
from consisid.engine.errors import InputError
from consisid.engine.files import file_aside
from consisid.engine.manifest import provenance

from .inputs import PROMPT, identity

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One measured quantity over the counted runs: the median and the quartiles."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, name: str, unit: str, values: list[float]) -> "Row":
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        return cls(name, unit, statistics.median(values), low, high, len(values))


def commit() -> str | None:
    """The commit of the sources, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def bench(folder: Path, steps: int, runs: int) -> dict[str, Any]:
    """Measure an engine: a warm-up, then `runs` videos of `steps` steps."""
    if runs < 1 or steps < 1:
        raise InputError(f"--runs {runs} and --steps {steps} have to be at least 1.")
    engine = ConsisID.open(folder)
    person = identity(engine.variant)
    all_stats = [engine.generate(person, PROMPT, seed=i, num_inference_steps=steps).stats for i in range(runs + 1)][1:]
    rows = [
        Row.of(f"{stage} per video", "s", [stats.seconds[stage] for stats in all_stats])
        for stage in all_stats[0].seconds
    ]
    rows.append(Row.of("step", "s", [seconds for stats in all_stats for seconds in stats.steps]))
    rows.append(Row.of("peak memory", "GiB", [max(stats.peak_bytes for stats in all_stats) / 2**30]))
    spec = engine.manifest.spec
    return {
        "schema": SCHEMA,
        "engine": {
            "variant": spec.variant.name,
            "shape": str(spec.shape),
            "dtype": spec.dtype,
            "backend": spec.backend,
        },
        "machine": provenance(engine.device),
        "commit": commit(),
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": [asdict(row) for row in rows],
    }


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write report.json and report.md; return their paths."""
    heading = ", ".join(str(value) for value in report["engine"].values())
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    lines = [
        f"# {heading}", "", machine, "", f"commit {report['commit']}, {report['date']}", "",
        f"`{report['command']}`", "", "| | median | quartiles | runs |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {r['name']} | {r['median']:.4g} {r['unit']} | {r['low']:.4g} to {r['high']:.4g} | {r['count']} |"
        for r in report["rows"]
    ]
    contents = {"report.json": json.dumps(report, indent=1), "report.md": "\n".join(lines)}
    for name, content in contents.items():
        with file_aside(folder / name) as aside:
            aside.write_text(content + "\n")
    return [folder / name for name in contents]
