"""A second report beside a first: whether each median lies within the quartiles that the first one states.

Machines that are shared, and processors that change their clocks, are slower for minutes and faster for others, by more
than a change that one looks for. A report therefore says how fast the machine was, by a product of matrices after every
turn, and a second run's times are judged at the speed of the first too: as long as they would have taken there.

Of a machine that does not change at all some medians still lie outside, since both runs are samples; how many is
counted (`missed_by_chance`), so that a reader can tell these from a change.
"""

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from typing_extensions import TypedDict

from consisid.engine.errors import InputError
from consisid.engine.util.parsing import MIB, Unreadable, read_object, validate

from ..core.samples import Row
from ..core.tables import table

Report = Mapping[str, Any]
SAME = (("engine",), ("settings", "steps"), ("settings", "memory"), ("made", "device"), ("machine", "torch_threads"))
DRAWN, ENOUGH = 2000, 1000  # draws, and values of which more change nothing to a hundredth
LARGEST = 64 * MIB  # of a report.json
TIMED = ("video", "stage", "step", "latency", "memory")  # sections whose rows are measured


class RowRead(TypedDict):
    """A row of a report, as far as it is compared."""

    section: str
    name: str
    unit: str
    low: float
    high: float
    median: float
    count: Annotated[int, Ge(1)]


class MadeRead(TypedDict):
    """Who made a report."""

    device: str
    commit: str | None
    date: str


class ReportRead(TypedDict):
    """What is compared of a report.json."""

    schema: int
    engine: dict[str, Any]
    settings: dict[str, Any]
    made: MadeRead
    machine: dict[str, Any]
    ceilings: dict[str, Any]
    rows: list[RowRead]


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
        report: Report = read_object(file, LARGEST)
        validate(ReportRead, report)
        validate(dict[str, float], report["ceilings"].get("moved"), "ceilings.moved")
        if ("machine", "ours") not in _medians(report):
            raise Unreadable("it does not say how fast the machine was")
    except (FileNotFoundError, Unreadable) as error:
        raise InputError(f"{file} is no report.json of consisid-bench ({error}); give one that it wrote.") from None
    return report


def compare(first: Report, second: Report) -> list[Compared]:
    """Every measured row that both have, in the order of the first.

    Raises:
        InputError: reports of different schemas, engines, settings or devices.
    """
    for path in (("schema",), *SAME):
        a, b = (reduce(lambda value, key: value.get(key), path, report) for report in (first, second))
        if a != b:
            raise InputError(f"The reports differ in {' '.join(path)}: {a} and {b}; compare two runs of one command.")
    later = {(row["section"], row["name"]): row for row in second["rows"]}
    faster, found = speedups(first, second), list[Compared]()
    for row in first["rows"]:
        key = row["section"], row["name"]
        if row["section"] in TIMED and key in later:
            median = later[key]["median"]
            maker = row["name"].rpartition(": ")[0] or row["name"]
            leveled = median * faster.get(maker, faster.get("ours", 1.0)) if row["unit"] == "s" else median
            within, at_speed = (
                row["low"] <= value <= row["high"] if row["count"] > 1 else None for value in (median, leveled)
            )
            stated = row["unit"], row["low"], row["high"], row["median"]
            chance = missed_by_chance(row["count"], later[key]["count"]) if row["count"] > 1 else 0.0
            found.append(Compared(*key, *stated, median, leveled, within, at_speed, chance))
    return found


@lru_cache
def missed_by_chance(first: int, second: int) -> float:
    """The chance that the median of `second` values lies outside the quartiles of `first` values of the same
    distribution, whatever that is, all of them independent: drawn, to a hundredth."""
    draw, missed = random.Random(0), 0
    first, second = min(first, ENOUGH), min(second, ENOUGH)
    for _ in range(DRAWN):
        row = Row.of("", "", "", [draw.random() for _ in range(first)])
        missed += not row.low <= statistics.median(draw.random() for _ in range(second)) <= row.high
    return missed / DRAWN


def speedups(first: Report, second: Report) -> dict[str, float]:
    """How many times as fast the machine was during the second run, by whose turns; "ours" are those of the engine, its
    rungs, its latencies and diffusers as it is."""
    earlier, later = (_medians(report) for report in (first, second))
    both = [key for key in earlier if key[0] == "machine" and key in later]
    return {name: later[section, name] / earlier[section, name] for section, name in both if earlier[section, name]}


def _medians(report: Report) -> dict[tuple[str, str], float]:
    return {(row["section"], row["name"]): row["median"] for row in report["rows"]}


def markdown(first: Report, second: Report, rows: Sequence[Compared]) -> str:
    """The comparison as a table, with the count of rows within on top."""
    judged = [row for row in rows if row.within is not None]
    inside, leveled = sum(bool(row.within) for row in judged), sum(bool(row.leveled_within) for row in judged)
    words = {True: "yes", False: "no", None: "one value states no spread"}
    chance = sum(row.chance for row in judged)
    heading = ["", "first run's quartiles", "median", "second median", "of it", "within"]
    heading += ["at the first's speed", "of it", "within"]
    cells = []
    for row in rows:
        line = [f"{row.section}, {row.name}", f"{row.low:.4g} to {row.high:.4g} {row.unit}", f"{row.first:.4g}"]
        for value, within in ((row.second, row.within), (row.leveled, row.leveled_within)):
            line += [f"{value:.4g}", f"{value / row.first:.1%}" if row.first else "", words[within]]
        cells.append(line)
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
        *table(heading, cells),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _moved(report: Report) -> str:
    return " and ".join(f"{change:+.1%}" for change in report["ceilings"]["moved"].values())
