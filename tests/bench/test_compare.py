"""A second run beside the first: what lies within the first's quartiles is said row by row."""

import copy
import json

import pytest

from consisid.bench.cli import main
from consisid.bench.report.compare import compare, missed_by_chance
from consisid.engine.errors import InputError


def moved(values, name, seconds):
    second = copy.deepcopy(values)
    for row in second["rows"]:
        if row["name"] == name:
            row["median"] = seconds
    return second


def test_a_median_outside_the_quartiles_is_found(values):
    row = next(row for row in values["rows"] if (row["section"], row["name"]) == ("step", "ours"))
    inside = {r.name: r.within for r in compare(values, values) if r.section == "step"}
    assert inside["ours"]
    for seconds in (row["low"] * 0.99, row["high"] * 1.01):
        found = {r.name: r.within for r in compare(values, moved(values, "ours", seconds)) if r.section == "step"}
        assert found == {**inside, "ours": False}


def test_times_are_judged_at_the_first_runs_speed_too(values):
    """Everything takes a tenth longer, and so does the machine's product: nothing has changed. Memory is no time."""
    second = copy.deepcopy(values)
    for row in second["rows"]:
        row["median"] = row["median"] / 1.1 if row["section"] == "machine" else row["median"] * 1.1
    judged = [row for row in compare(values, second) if row.within is not None]
    assert all(row.leveled_within and row.leveled == pytest.approx(row.first) for row in judged)
    assert not all(row.within for row in judged)
    memory = {**values["rows"][0], "section": "memory", "unit": "GiB", "low": 1.0, "median": 1.0, "high": 1.0}
    more = [{**memory, "median": 1.1}, *second["rows"]]
    (found,) = [
        row
        for row in compare({**values, "rows": [memory, *values["rows"]]}, {**second, "rows": more})
        if row.section == "memory"
    ]
    assert found.leveled == 1.1
    assert not found.leveled_within


def test_each_is_judged_at_the_speed_of_its_own_turns(values):
    """The machine is twice as fast only while a peer is measured."""
    second, peer = copy.deepcopy(values), "diffusers, slicing, tiling"
    for row in second["rows"]:
        if row["name"].startswith(peer):
            row["median"] *= 2 if row["section"] == "machine" else 0.5
    for row in compare(values, second):
        assert row.leveled == pytest.approx(row.first)


def test_one_value_is_not_judged_and_counted_work_left_out(values):
    rows = compare(values, values)
    assert next(row for row in rows if row.name == "open").within is None
    assert "work" not in {row.section for row in rows}


def test_what_chance_leaves_out():
    """Of two values the quartiles are the values themselves: a third one lies outside with a chance of two thirds. With
    many values on both sides, a quarter lies beyond each quartile and next to nothing is missed."""
    assert missed_by_chance(2, 1) == pytest.approx(2 / 3, abs=0.035)  # three standard errors of 2000 draws
    assert missed_by_chance(200, 1) == pytest.approx(1 / 2, abs=0.035)
    assert missed_by_chance(200, 200) < 0.001


def test_only_runs_of_one_command_are_compared(values):
    with pytest.raises(InputError, match="differ in settings steps: 2 and 3"):
        compare(values, {**values, "settings": {**values["settings"], "steps": 3}})


def test_the_command_compares_two_reports(values, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    arguments = [str(tmp_path / "b.json"), "--compare", str(tmp_path / "a.json"), "--output", str(tmp_path)]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "compare.md").read_text()
    judged = [row for row in values["rows"] if row["count"] > 1 and row["section"] != "machine"]
    count = len(judged)
    first = table.splitlines()[0]
    assert (
        first == f"# Of {count} medians {count} within the first's quartiles as timed, {count} at its machine's speed"
    )
    expected = sum(missed_by_chance(row["count"], row["count"]) for row in judged)
    assert f"By chance alone about {expected:.1f} would lie outside" in table
    assert "in the turns of ours: 1.000, of diffusers, slicing, tiling: 1.000, of ours, all turns: 1.000" in table
    (tmp_path / "a.json").write_text("{}")
    assert main(arguments) == 2
    assert "is no report.json" in capsys.readouterr().err


def changed(*path, to=None):
    def change(values):
        for key in path[:-1]:
            values = values[key]
        if to is None:
            del values[path[-1]]
        else:
            values[path[-1]] = to

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(changed(name) for name in ("schema", "engine", "settings", "made", "machine", "ceilings", "rows")),
        *(changed(name, to=3) for name in ("engine", "settings", "made", "machine", "ceilings", "rows")),
        *(changed("rows", 0, name) for name in ("section", "name", "unit", "low", "high", "median", "count")),
        changed("rows", 0, "median", to="x"), changed("rows", 0, "count", to=0), changed("rows", 0, to=[]),
        changed("rows", to=[]), changed("made", "commit", to=3), changed("made", "date"), changed("ceilings", "moved"),
        changed("ceilings", "moved", to={"product": "x"}),
    ],
)  # fmt: skip
def test_a_report_that_was_changed_is_refused_in_one_line(values, tmp_path, capsys, change):
    """As the first, as the second, and beside itself."""
    good, other = tmp_path / "good.json", tmp_path / "other.json"
    good.write_text(json.dumps(values))
    edited = copy.deepcopy(values)
    change(edited)
    other.write_text(json.dumps(edited))
    for first, second in ((good, other), (other, good), (other, other)):
        assert main([str(second), "--output", str(tmp_path / "out"), "--compare", str(first)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "other.json is no report.json of consisid-bench" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"\xff", b"[]", b'{"schema": NaN}', b'{"schema": ' + b"9" * 5000]
)
def test_what_is_no_report(tmp_path, capsys, content):
    (tmp_path / "x.json").write_bytes(content)
    assert (
        main([str(tmp_path / "x.json"), "--output", str(tmp_path / "out"), "--compare", str(tmp_path / "x.json")]) == 2
    )
    assert "is no report.json of consisid-bench" in capsys.readouterr().err


def test_counts_and_times_that_cannot_be_are_compared_in_no_time(values):
    """Ten thousand million values are as good as a thousand; a speed of nothing is none."""
    second = copy.deepcopy(values)
    for row in second["rows"]:
        row["count"], row["median"] = 10**10, 0.0
    assert compare(values, second)
    assert compare(second, values)
