"""The plots of a report, as PNG."""

import io
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from .memory import PLANNED

GAIN, LOSS = "#b8651b", "#a50f15"
INK, OURS, THEIRS, ACCENT = "#22303c", "#1f77b4", "#b0b7bd", "#d95f02"
STAGES = ("#d95f02", "#7570b3", "#66a61e", "#1f77b4", "#e6ab02")
Report = Mapping[str, Any]


def _png(draw: Callable[[Any], None], height: float = 3.2) -> bytes:
    from matplotlib.figure import Figure  # not pyplot, which keeps global state

    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def stages(report: Report) -> bytes:
    """Seconds of a video by stage, one bar per maker."""
    found: dict[str, dict[str, float]] = {}
    for row in (row for row in report["rows"] if row["section"] == "stage"):
        maker, _, stage = row["name"].rpartition(": ")
        found.setdefault(maker, {})[stage] = row["median"]
    names = [name for name in PLANNED if any(name in values for values in found.values())]

    def draw(axes: Any) -> None:
        makers = list(found)[::-1]
        left = [0.0] * len(makers)
        for stage, colour in zip(names, STAGES, strict=False):
            widths = [found[maker].get(stage, 0.0) for maker in makers]
            axes.barh(makers, widths, left=left, label=stage, color=colour, height=0.6)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for i, total in enumerate(left):
            axes.text(total, i, f" {total:.3g} s", va="center", color=INK)
        axes.set(xlabel="seconds per video (median of each stage)", ylabel="who makes it", xlim=(0, max(left) * 1.15))
        axes.legend(ncols=len(names), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return _png(draw, 1.4 + 0.45 * len(found))


def steps(report: Report) -> bytes:
    """Seconds of a step, median and quartiles; of the ablations with what each saves over the one above it."""
    rows = [row for row in report["rows"] if row["section"] == "step"][::-1]
    gains = {rung["name"]: rung["gain"] for rung in report["waterfall"]}

    def draw(axes: Any) -> None:
        for i, row in enumerate(rows):
            colour, gain = OURS if row["name"].startswith("ours") else THEIRS, gains.get(row["name"])
            axes.barh(i, row["median"], color=colour, height=0.5)
            axes.plot([row["low"], row["high"]], [i, i], color=INK, lw=2)
            text = f"  {row['median']:.3g} s" + (f" ({-gain / (row['median'] + gain):+.0%})" if gain else "")
            colour = INK if not gain else GAIN if gain > 0 else LOSS
            axes.text(max(row["high"], row["median"]), i, text, va="center", color=colour)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.set(xlabel="seconds per step: median and quartiles;\nin brackets the change to the row above")
        axes.set(ylabel="who makes it", xlim=(0, max(row["high"] for row in rows) * 1.4))

    return _png(draw, 1.0 + 0.45 * len(rows))


def memory(report: Report) -> bytes:
    """Memory over the time of one video, with its stages."""
    found = report["memory"]

    def draw(axes: Any) -> None:
        unit, size = ("GiB", 2**30) if max(found["reserved"]) > 2**30 else ("MiB", 2**20)
        axes.plot(found["seconds"], [x / size for x in found["allocated"]], color=OURS, label="in use")
        if found["reserved"] != found["allocated"]:
            axes.plot(found["seconds"], [x / size for x in found["reserved"]], color=THEIRS, label="reserved")
        end = max(found["seconds"], default=1.0)
        for (name, at), (_, until) in pairwise([*found["stages"].items(), ("", end)]):
            axes.axvline(at, color=INK, lw=0.6, ls=":")
            height = found["plan"]["stages"][name] / size
            axes.plot([at, until], [height, height], color=ACCENT, lw=1.5, label="predicted" if at == 0 else None)
            if until - at > end * 0.08:  # a short stage has no room for its name
                axes.text(at, 1.0, f" {name}", transform=axes.get_xaxis_transform(), va="bottom", color=INK)
        axes.set(xlabel=f"time in seconds\n{found['kind']}", ylabel=f"memory in {unit}", ylim=(0, None), xlim=(0, end))
        axes.legend(frameon=False, loc="lower right", ncols=3)

    return _png(draw)


def plots(report: Report) -> dict[str, bytes]:
    """Title -> PNG, of what a table shows less well."""
    return {
        "Seconds per stage": stages(report),
        "Seconds per step, and what each technique gains": steps(report),
        "Memory over one video": memory(report),
    }
