"""What the server adds between a request and the first step, over the engine alone."""

import json
from pathlib import Path

import pytest
from support import first_step
from support.first_step import ADDED, ALONE, SERVED

ROOT = Path(__file__).parents[2]
LARGEST = 0.050  # seconds, of a committed report: how fast this machine is now decides nothing
pytestmark = pytest.mark.slow


def test_both_ways_are_measured_in_turns(shallow_folder, tmp_path, capsys):
    first_step.main([str(shallow_folder), "--output", str(tmp_path), "--turns", "2"])
    values = json.loads((tmp_path / "served.json").read_text())
    seconds = values["seconds"]
    assert {name: len(found) for name, found in seconds.items()} == {ALONE: 2, SERVED: 2, ADDED: 2}
    assert min(seconds[ALONE] + seconds[SERVED]) > 0
    assert seconds[ADDED] == [b - a for a, b in zip(seconds[ALONE], seconds[SERVED], strict=True)]
    assert "python -m support.first_step" in values["made"]["command"]
    assert capsys.readouterr().out.rstrip() == (tmp_path / "served.md").read_text().rstrip()


def test_the_report_is_within_what_is_allowed_and_the_page_has_its_figures():
    values = json.loads((ROOT / "bench/reports/cpu-tiny-served.json").read_text())
    rows = {row["name"]: row for row in values["rows"]}
    added = rows[ADDED]
    assert added["count"] >= 30
    assert added["low"] <= added["median"] <= LARGEST
    assert "-dirty" not in values["made"]["commit"]
    row = (
        f"{1e3 * added['median']:.1f} ms (median of {added['count']} turns; the engine's own: "
        f"{1e3 * rows[ALONE]['median']:.0f} ms)"
    )
    assert f"| {row} |" in (ROOT / "docs/serving.md").read_text()
    assert (ROOT / "bench/reports/cpu-tiny-served.md").read_text() == first_step.markdown(values)
