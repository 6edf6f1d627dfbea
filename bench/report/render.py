"""A report as Markdown, and as one HTML file with its plots inside."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ..core.tables import made_by, table
from .plots import plots

Report = Mapping[str, Any]
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, heading, cells
SECTIONS = {
    "video": "Seconds per video", "stage": "Seconds per stage", "step": "Seconds per step", "memory": "Peak memory",
    "latency": "Latency as a caller feels it", "machine": "How fast the machine was",
    "work": "Work counted from the shapes",
}  # fmt: skip
MIB = 2**20


def number(value: float | None, unit: str = "", none: str = "not measured") -> str:
    return none if value is None else f"{value:.4g} {unit}".rstrip()


def title(report: Report) -> str:
    engine = report["engine"]
    random = ", random weights" if engine["random_weights"] else ""
    return f"{engine['variant']}{random}: {engine['shape']}, {engine['dtype']}, {engine['backend']}"


def facts(report: Report) -> list[str]:
    """The lines under the title: what made the figures."""
    made, ceilings, settings, start = (
        report["made"], report["ceilings"], report["settings"], report["ceilings"]["start"]
    )  # fmt: skip
    lines = [
        made_by(made),
        f"`{made['command']}`: {settings['steps']} steps, {settings['runs']} counted runs after one that is not; "
        f"{report['machine']['torch_threads']} thread(s).",
        f"Ceilings of this run: {number(start['tflops'], 'TFLOP/s')}, {number(start['gbps'], 'GB/s')} ({start['how']})"
        f"; by the end {ceilings['moved']['product']:+.1%} and {ceilings['moved']['copy']:+.1%}.",
    ]
    if ceilings["note"]:
        lines.append(f"Mind: {ceilings['note']}.")
    if report["energy"]:
        lines.append(f"Energy: {number(report['energy']['joules_per_video'], 'J')} per video of these steps.")
    if report["watched"]:
        lines.append(f"GPU during the run: {report['watched']}")
    lines.append(f"Memory: {_planned(report['memory']['plan'])}.")
    if report["parity"]:
        lines.append(f"Parity: {_parity(report['parity'])}.")
    return lines


def _planned(plan: Report) -> str:
    budget = "no budget" if plan["budget"] is None else f"a budget of {plan['budget'] / MIB:.0f} MiB"
    text = f"{budget}, the plan keeps {plan['mode']}, CFG {plan['cfg']}, and predicts {plan['peak'] / MIB:.0f} MiB"
    return text + (f", {plan['allowance'] / MIB:.0f} MiB of it for CUDA itself" if plan["allowance"] else "")


def _parity(parity: Report) -> str:
    verdict = parity["verdict"]
    words = "holds" if verdict["holds"] else "does not hold"
    text = f"the rule {words} ({verdict['rule']}: {verdict['found']:.2e}, allowed {verdict['allowed']:.2e}"
    text += f", over {parity['videos']} video(s))"
    return f"{text}; {parity['note']}" if parity["note"] else text


def summary(report: Report) -> Table:
    """The row of the device in the README's table."""
    engine, settings = report["engine"], report["settings"]
    medians = {(row["section"], row["name"]): row["median"] for row in report["rows"]}
    what = f"{engine['variant']}, {engine['shape']}, {settings['steps']} steps, {engine['dtype']}, {engine['backend']}"
    row = [report["made"]["device"], what]
    row += [number(medians.get((section, name))) for name in ("ours", "diffusers") for section in ("video", "step")]
    heading = ("device", "engine", "s per video", "s per step", "diffusers: s per video", "s per step")
    return "In a line", heading, [row]


def tables(report: Report) -> Iterable[Table]:
    """All tables of a report, in their order."""
    yield summary(report)
    for section, name in SECTIONS.items():
        cells = [
            (r["name"], number(r["median"], r["unit"]), f"{r['low']:.4g} to {number(r['high'], r['unit'])}",
             str(r["count"]), r["note"])
            for r in report["rows"] if r["section"] == section
        ]  # fmt: skip
        if cells:
            yield name, ("", "median", "quartiles", "values", ""), cells
    heading = ("", "seconds", "gain", "of the row above, turn by turn", "what it is")
    yield "What each technique gains, per step", heading, [
        (r["name"], number(r["step_seconds"], "s"), number(r["gain"], "s", ""), _ratio(r), r["technique"])
        for r in report["waterfall"]
    ]  # fmt: skip
    yield "Rates against the ceilings", ("", "TFLOP", "TFLOP/s", "of ceiling", "weights GB/s", "of copy"), [
        (
            r["stage"], number(r["tflop"]), number(r["tflops"]), f"{r['of_ceiling']:.1%}",
            number(r["weights_gbps"], none=""), f"{r['of_copy_ceiling']:.1%}" if r["weights_gbps"] else "",
        )
        for r in report["rates"]
    ]  # fmt: skip
    predicted, seen = report["memory"]["plan"]["stages"], report["memory"]["peaks"]
    yield "Memory of one video, MiB", ("", "predicted", "seen"), [
        (name, f"{size / MIB:.1f}", f"{seen[name] / MIB:.1f}" if name in seen else "too short to be seen")
        for name, size in predicted.items()
    ]  # fmt: skip
    if report["peers"]:
        yield "diffusers in the same process, in turns", (
            "", "peak (GB)", "s per video", "s per step",
            "ours in the same turns: peak (GB)", "s per video", "s per step",
        ), [_beside(row) for row in report["peers"]]  # fmt: skip
        yield "The memory that the reference states, and the engine within it", (
            "", "stated (GB allocated/reserved)", "peak here (GB)", "s per step", "ours: budget (GB)", "mode",
            "predicted peak (GB)", "peak (GB)", "s per video", "s per step",
        ), [_within(row) for row in report["peers"] if row["stated_gb"]]  # fmt: skip
    if report["parity"]:
        yield f"Error against {report['parity']['reference']}", (
            "", "latents, largest per step", "latents, PSNR per step", "frames, PSNR", "frames, largest, of 1"
        ), [_errors(report["parity"], name) for name in ("ours", "diffusers")]  # fmt: skip
    yield "Not measured", ("what", "because"), [(m["what"], m["because"]) for m in report["not_measured"]]


def _ratio(row: Report) -> str:
    return f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})" if "ratio" in row else ""


def _figures(values: Mapping[str, Any] | None, *keys: str) -> list[str]:
    """Of something that may not have been measured."""
    return [number(None if values is None else values[key]) for key in keys]


def _beside(row: Report) -> Sequence[str]:
    keys = "peak_gb", "seconds", "step_seconds"
    return [row["name"], *_figures(row["theirs"], *keys), *_figures(row["ours"], *keys)]


def _within(row: Report) -> Sequence[str]:
    ours = row["within"]
    cells = [row["name"], "/".join(f"{x:g}" for x in row["stated_gb"])]
    cells += _figures(row["theirs"], "peak_gb", "step_seconds") + _figures(ours, "budget_gb")
    cells[-1] += ", in proportion" if ours and ours["scaled"] else ""
    mode = ours["mode"] if ours else number(None)
    return [*cells, mode, *_figures(ours, "predicted_gb", "peak_gb", "seconds", "step_seconds")]


def _errors(parity: Report, name: str) -> Sequence[str]:
    found = parity[name]
    largest = ", ".join(f"{error:.1e}" for error in found["max_error_per_step"])
    psnr = ", ".join(_psnr(value) for value in found["psnr_per_step_db"])
    frames = _psnr(found["frames_psnr_db"]), f"{found['frames_max_error']:.1e}"
    return (f"{name}, {parity['dtype']}", largest, psnr, *frames)


def _psnr(value: float | None) -> str:
    return "identical" if value is None else f"{value:.1f} dB"


def markdown(report: Report) -> str:
    """report.md."""
    lines = [f"# {title(report)}", ""]
    for fact in facts(report):
        lines += [fact, ""]
    for name, heading, cells in tables(report):
        lines += [f"## {name}", "", *table(heading, cells), ""]
    return "\n".join(lines)


STYLE = """body { font: 15px/1.45 sans-serif; color: #22303c; max-width: 60em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: .5em 0 1.5em } td, th { padding: .2em .8em; border-bottom: 1px solid #dde }
th { text-align: left } td { vertical-align: top } img { max-width: 100% } code { background: #eef; padding: 0 .2em }"""


def _marked(text: str) -> str:
    """A text as HTML, with what stands in backticks as code; a number and its unit stay in one line."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", re.sub(r"(?<=\d) (?=[A-Za-z/]{1,8}$)", "\u00a0", escape(text)))


def html(report: Report) -> str:
    """report.html: one file that needs no other."""
    parts = [f"<h1>{escape(title(report))}</h1>", *(f"<p>{_marked(fact)}</p>" for fact in facts(report))]
    for name, picture in plots(report).items():
        source = base64.b64encode(picture).decode()
        parts.append(f'<h2>{escape(name)}</h2><img alt="{escape(name)}" src="data:image/png;base64,{source}">')
    for name, heading, cells in tables(report):
        head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
        body = "".join(f"<tr>{''.join(f'<td>{_marked(cell)}</td>' for cell in row)}</tr>" for row in cells)
        parts.append(f"<h2>{escape(name)}</h2><table><tr>{head}</tr>{body}</table>")
    head = f'<meta charset="utf-8"><title>{escape(title(report))}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
