"""What a report looks like: nothing of Markdown in its HTML, and units and labels everywhere."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from consisid.bench.report import plots, render

REPORT = json.loads((Path(render.__file__).parents[1] / "reports" / "cpu-tiny.json").read_text())


def test_the_html_has_code_and_no_backticks():
    text = re.sub(r'"data:image/png;base64,[^"]*"', '""', render.html(REPORT))
    assert "`" not in text
    assert f"<code>{REPORT['made']['command']}</code>" in unescape(text)


def test_text_that_looks_like_html_stays_text():
    report = {**REPORT, "not_measured": [{"what": "<b>`x<y`</b>", "because": "&"}]}
    assert "<td>&lt;b&gt;<code>x&lt;y</code>&lt;/b&gt;</td><td>&amp;</td>" in render.html(report)


@pytest.mark.parametrize("draw", [plots.stages, plots.steps, plots.memory])
def test_axes_are_labelled(draw, monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "_png", lambda on, height=3.2: seen.append(on))
    draw(REPORT)
    axes = Figure().add_subplot()
    seen[0](axes)
    assert "second" in axes.get_xlabel()
    assert axes.get_ylabel() in ("who makes it", "memory in MiB")


def test_figures_have_units():
    """Each median and its quartiles, the last of which has the unit for both."""
    for name, heading, cells in render.tables(REPORT):
        if heading[1:3] == ("median", "quartiles"):
            units = {tuple(cell.rpartition(" ")[2] for cell in row[1:3]) for row in cells}
            assert all(one == other and not one[0].isdigit() for one, other in units), name
