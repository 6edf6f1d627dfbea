"""A second report beside a first: whether each median lies within the quartiles that the first one states.

Machines that are shared, and processors that change their clocks, are slower for minutes and faster for others, by more
than a change that one looks for. A report therefore says how fast the machine was, by a product of matrices after every
turn, and a second run's times are judged at the speed of the first too: as long as they would have taken there.

Of a machine that does not change at all some medians still lie outside, since both runs are samples; how many is
counted (`missed_by_chance`), so that a reader can tell these from a change.
"""

import json
import math
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
    """A row of both reports.

    leveled: the second median at the machine's speed of the first run. within, leveled_within: None where the first has
    one value, and so states no spread. chance: of lying outside though nothing changed, 0 where it is not judged.
    """

    section: str
    name: str
    unit: str
    low: float
    high: float
    first: float
    second: float
    leveled: float
    within: bool | None
    leveled_within: bool | None
    chance: float


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
    later, faster, found = _medians(second), speedups(first, second), list[Compared]()
    counts = {(row["section"], row["name"]): row["count"] for row in second["rows"]}
    for row in first["rows"]:
        key = row["section"], row["name"]
        if row["section"] in TIMED and key in later:
            median = later[key]
            maker = row["name"].rpartition(": ")[0] or row["name"]
            leveled = median * faster.get(maker, faster["ours"]) if row["unit"] == "s" else median
            within, at_speed = (
                row["low"] <= value <= row["high"] if row["count"] > 1 else None for value in (median, leveled)
            )
            stated = row["unit"], row["low"], row["high"], row["median"]
            chance = missed_by_chance(row["count"], counts[key]) if row["count"] > 1 else 0.0
            found.append(Compared(*key, *stated, median, leveled, within, at_speed, chance))
    return found


def missed_by_chance(first: int, second: int) -> float:
    """The chance that the median of `second` values lies outside the quartiles of `first` values of the same
    distribution, whatever that is, all of them independent.

    A quartile or median between two ranks gets the chances of both, weighted as it weighs the values: exact where there
    is none between, up to a fifth too high else (24 and 24 values: 0.065, drawn 0.055).
    """
    return 2 * sum(
        a * b * _below(rank, second, quartile, first)
        for quartile, a in _ranks((first + 1) / 4)
        for rank, b in _ranks((second + 1) / 2)
    )


def _ranks(rank: float) -> list[tuple[int, float]]:
    """The ranks on both sides of one between them, each with its weight; the lowest is 1."""
    rank = max(rank, 1.0)
    below, part = int(rank), rank % 1
    return [(below, 1 - part), (below + 1, part)] if part else [(below, 1.0)]


def _below(rank: int, second: int, other: int, first: int) -> float:
    """The chance that the value of this rank among `second` is below the one of rank `other` among `first`: that at
    least `rank` of the second's come before it, of all orders of both (negative hypergeometric)."""
    before = (
        math.comb(i + other - 1, i) * math.comb(first - other + second - i, second - i) for i in range(rank, second + 1)
    )
    return sum(before) / math.comb(first + second, first)


def speedups(first: Report, second: Report) -> dict[str, float]:
    """How many times as fast the machine was during the second run, by whose turns; "ours" are those of the engine, its
    rungs, its latencies and diffusers as it is."""
    earlier, later = (_medians(report) for report in (first, second))
    both = [key for key in earlier if key[0] == "machine" and key in later]
    return {name: later[section, name] / earlier[section, name] for section, name in both}


def _medians(report: Report) -> dict[tuple[str, str], float]:
    return {(row["section"], row["name"]): row["median"] for row in report["rows"]}


def _at(report: Report, path: Sequence[str]) -> Any:
    value: Any = report
    for key in path:
        value = value.get(key)
    return value


def markdown(first: Report, second: Report, rows: Sequence[Compared]) -> str:
    """The comparison as a table, with the count of rows within on top."""
    judged = [row for row in rows if row.within is not None]
    inside, leveled = sum(bool(row.within) for row in judged), sum(bool(row.leveled_within) for row in judged)
    words = {True: "yes", False: "no", None: "one value states no spread"}
    chance = sum(row.chance for row in judged)
    lines = [
        f"# Of {len(judged)} medians {inside} within the first's quartiles as timed, {leveled} at its machine's speed",
        "",
        f"By chance alone about {chance:.1f} would lie outside: both are samples, of a machine that does not change.",
        "",
        *(f"{name}: commit {r['made']['commit']}, {r['made']['date']}; ceilings moved by {_moved(r)} within it.  "
          for name, r in (("First", first), ("Second", second))),
        "",
        "How many times as fast the machine was in the second run, in the turns of "
        + ", of ".join(f"{name}: {faster:.3f}" for name, faster in speedups(first, second).items()),
        "",
        "| | first run's quartiles | median | second median | of it | within | at the first's speed | of it | within |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        cells = [f"{row.section}, {row.name}", f"{row.low:.4g} to {row.high:.4g} {row.unit}", f"{row.first:.4g}"]
        for value, within in ((row.second, row.within), (row.leveled, row.leveled_within)):
            cells += [f"{value:.4g}", f"{value / row.first:.1%}" if row.first else "", words[within]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _moved(report: Report) -> str:
    return " and ".join(f"{change:+.1%}" for change in report["ceilings"]["moved"].values())
