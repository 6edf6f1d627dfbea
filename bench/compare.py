"""A second report beside a first: whether each median lies within the quartiles that the first one states."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consisid.engine.errors import InputError

Report = Mapping[str, Any]
SAME = (("engine",), ("settings", "steps"), ("settings", "memory"), ("made", "device"), ("machine", "torch_threads"))
TIMED = ("video", "stage", "step", "latency", "memory")  # sections whose rows are measured


@dataclass(frozen=True)
class Compared:
    """A row of both reports. within: None where the first has one value, and so states no spread."""

    section: str
    name: str
    unit: str
    low: float
    high: float
    first: float
    second: float
    within: bool | None


def read(file: Path) -> Report:
    """A report.json.

    Raises:
        InputError: no file, or something else.
    """
    try:
        report: Report = json.loads(file.read_text())
        _ = report["schema"], report["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no report.json of consisid-bench ({error}); give one that it wrote.") from None
    return report


def compare(first: Report, second: Report) -> list[Compared]:
    """Every measured row that both have, in the order of the first.

    Raises:
        InputError: reports of different schemas, engines, settings or devices.
    """
    for path in (("schema",), *SAME):
        a, b = (_at(report, path) for report in (first, second))
        if a != b:
            raise InputError(f"The reports differ in {' '.join(path)}: {a} and {b}; compare two runs of one command.")
    later = {(row["section"], row["name"]): row["median"] for row in second["rows"]}
    return [
        Compared(
            row["section"], row["name"], row["unit"], row["low"], row["high"], row["median"], later[key],
            row["low"] <= later[key] <= row["high"] if row["count"] > 1 else None,
        )
        for row in first["rows"]
        if row["section"] in TIMED and (key := (row["section"], row["name"])) in later
    ]  # fmt: skip


def _at(report: Report, path: Sequence[str]) -> Any:
    value: Any = report
    for key in path:
        value = value.get(key)
    return value


def markdown(first: Report, second: Report, rows: Sequence[Compared]) -> str:
    """The comparison as a table, with the count of rows within on top."""
    judged = [row for row in rows if row.within is not None]
    inside = sum(bool(row.within) for row in judged)
    words = {True: "yes", False: "no", None: "one value states no spread"}
    lines = [
        f"# {inside} of {len(judged)} medians within the first run's quartiles",
        "",
        *(f"{name}: commit {r['made']['commit']}, {r['made']['date']}; ceilings moved by {_moved(r)} within it.  "
          for name, r in (("First", first), ("Second", second))),
        "",
        "| | first run's quartiles | its median | second median | of it | within |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        share = f"{row.second / row.first:.1%}" if row.first else ""
        lines.append(
            f"| {row.section}, {row.name} | {row.low:.4g} to {row.high:.4g} {row.unit} | {row.first:.4g} | "
            f"{row.second:.4g} | {share} | {words[row.within]} |"
        )
    return "\n".join([*lines, ""])


def _moved(report: Report) -> str:
    return " and ".join(f"{change:+.1%}" for change in report["ceilings"]["moved"].values())
