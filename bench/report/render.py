"""A report as Markdown, and as one HTML file with its plots inside."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .plots import plots

Report = Mapping[str, Any]
Table = tuple[str, Sequence[str], list[Sequence[str]]]  # title, heading, cells
SECTIONS = {
    "video": "Seconds per video", "stage": "Seconds per stage", "step": "Seconds per step", "memory": "Peak memory",
    "latency": "Latency as a caller feels it", "machine": "How fast the machine was",
    "work": "Work counted from the shapes",
}  # fmt: skip


def number(value: float | None, unit: str = "") -> str:
    return "not measured" if value is None else f"{value:.4g}{' ' + unit if unit else ''}"


def optional(value: float | None, unit: str = "") -> str:
    """As number, and nothing where there is nothing to measure."""
    return "" if value is None else number(value, unit)


def title(report: Report) -> str:
    engine = report["engine"]
    random = ", random weights" if engine["random_weights"] else ""
    return f"{engine['variant']}{random}: {engine['shape']}, {engine['dtype']}, {engine['backend']}"


def facts(report: Report) -> list[str]:
    """The lines under the title: what made the figures."""
    made, ceilings, settings = report["made"], report["ceilings"], report["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines = [
        f"{made['device']}; driver {made['driver'] or 'none'}; {versions}; commit {made['commit']}; {made['date']}",
        f"`{made['command']}`: {settings['steps']} steps, {settings['runs']} counted runs after one that is not; "
        f"{report['machine']['torch_threads']} thread(s).",
        f"Ceilings of this run: {number(ceilings['start']['tflops'], 'TFLOP/s')}, "
        f"{number(ceilings['start']['gbps'], 'GB/s')} ({ceilings['start']['how']}); by the end "
        f"{ceilings['moved']['product']:+.1%} and {ceilings['moved']['copy']:+.1%}.",
    ]
    if ceilings["note"]:
        lines.append(f"Mind: {ceilings['note']}.")
    if report["energy"]:
        lines.append(f"Energy: {number(report['energy']['joules_per_video'], 'J')} per video of these steps.")
    if report["watched"]:
        lines.append(f"GPU during the run: {report['watched']}")
    lines.append(f"Memory: {_planned(report['memory'])}.")
    if report["parity"]:
        lines.append(f"Parity: {_parity(report['parity'])}.")
    return lines


def _planned(memory: Report) -> str:
    plan = memory["plan"]
    budget = "no budget" if plan["budget"] is None else f"a budget of {plan['budget'] / 2**20:.0f} MiB"
    text = f"{budget}, the plan keeps {plan['mode']}, CFG {plan['cfg']}, and predicts {plan['peak'] / 2**20:.0f} MiB"
    return text + (f", {plan['allowance'] / 2**20:.0f} MiB of it for CUDA itself" if plan["allowance"] else "")


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
    yield summary(report)
    for section, name in SECTIONS.items():
        rows = [row for row in report["rows"] if row["section"] == section]
        if rows:
            yield name, ("", "median", "quartiles", "values", ""), [
                (
                    row["name"], number(row["median"], row["unit"]), f"{row['low']:.4g} to {row['high']:.4g}",
                    str(row["count"]), row["note"],
                )
                for row in rows
            ]  # fmt: skip
    yield "What each technique gains, per step", ("", "seconds", "gain", "what it is"), [
        (r["name"], number(r["step_seconds"], "s"), optional(r["gain"], "s"), r["technique"])
        for r in report["waterfall"]
    ]  # fmt: skip
    yield "Rates against the ceilings", ("", "TFLOP", "TFLOP/s", "of ceiling", "weights GB/s", "of copy"), [
        (
            r["stage"], number(r["tflop"]), number(r["tflops"]), f"{r['of_ceiling']:.1%}",
            optional(r["weights_gbps"]), f"{r['of_copy_ceiling']:.1%}" if r["weights_gbps"] else "",
        )
        for r in report["rates"]
    ]  # fmt: skip
    memory = report["memory"]
    yield (
        "Memory of one video, MiB",
        ("", "predicted", "seen"),
        [
            (name, f"{size / 2**20:.1f}", _mib(memory["peaks"].get(name)))
            for name, size in memory["plan"]["stages"].items()
        ],
    )
    if report["peers"]:
        yield "diffusers in the same process, in turns", (
            "", "peak (GB)", "s per video", "s per step",
            "ours in the same turns: peak (GB)", "s per video", "s per step",
        ), [_peer(row) for row in report["peers"]]  # fmt: skip
        yield "The memory that the reference states, and the engine within it", (
            "", "stated (GB allocated/reserved)", "peak here (GB)", "s per step", "ours: budget (GB)", "mode",
            "predicted peak (GB)", "peak (GB)", "s per video", "s per step",
        ), [_within(row) for row in report["peers"] if row["stated_gb"]]  # fmt: skip
    if report["targets"]:
        yield "Gaps", ("", "aim", "here", "gap", "cause"), [
            (
                r["what"], number(r["aim_seconds"], "s"),
                number(r["seconds"], "s") + (" (extrapolated)" if r["extrapolated"] else ""),
                number(r["gap_seconds"], "s"), r["cause"],
            )
            for r in report["targets"]
        ]  # fmt: skip
    if report["parity"]:
        yield f"Error against {report['parity']['reference']}", (
            "", "latents, largest per step", "latents, PSNR per step", "frames, PSNR", "frames, largest"
        ), [
            (
                f"{name}, {report['parity']['dtype']}",
                ", ".join(f"{error:.1e}" for error in report["parity"][name]["max_error_per_step"]),
                ", ".join(_psnr(value) for value in report["parity"][name]["psnr_per_step_db"]),
                _psnr(report["parity"][name]["frames_psnr_db"]),
                f"{report['parity'][name]['frames_max_error']:.1e}",
            )
            for name in ("ours", "diffusers")
        ]  # fmt: skip
    yield "Not measured", ("what", "because"), [(m["what"], m["because"]) for m in report["not_measured"]]


def _psnr(value: float | None) -> str:
    return "identical" if value is None else f"{value:.1f} dB"


def _peer(row: Mapping[str, Any]) -> Sequence[str]:
    cells = [row["name"]]
    for side in (row["theirs"], row["ours"]):
        keys = ("peak_gb", "seconds", "step_seconds")
        cells += [number(side[key]) for key in keys] if side else ["not measured"] * 3
    return cells


def _within(row: Mapping[str, Any]) -> Sequence[str]:
    theirs, ours = row["theirs"] or {}, row["within"]
    cells = [row["name"], "/".join(f"{x:g}" for x in row["stated_gb"])]
    cells += [number(theirs.get(key)) for key in ("peak_gb", "step_seconds")]
    if ours is None:
        return [*cells, *["not measured"] * 6]
    budget = number(ours["budget_gb"]) + (", in proportion" if ours["scaled"] else "")
    return [
        *cells,
        budget,
        ours["mode"],
        *(number(ours[k]) for k in ("predicted_gb", "peak_gb", "seconds", "step_seconds")),
    ]


def _mib(size: int | None) -> str:
    return "too short to be seen" if size is None else f"{size / 2**20:.1f}"


def markdown(report: Report) -> str:
    """report.md."""
    lines = [f"# {title(report)}", ""]
    for fact in facts(report):
        lines += [fact, ""]
    for name, heading, cells in tables(report):
        lines += [f"## {name}", "", _line(heading), "|" + "---|" * len(heading)]
        lines += [_line(row) for row in cells] + [""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


STYLE = """body { font: 15px/1.45 sans-serif; color: #22303c; max-width: 60em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: .5em 0 1.5em } td, th { padding: .2em .8em; border-bottom: 1px solid #dde }
th { text-align: left } td { vertical-align: top } img { max-width: 100% } code { background: #eef; padding: 0 .2em }"""


def html(report: Report) -> str:
    """report.html: one file that needs no other."""
    parts = [f"<h1>{escape(title(report))}</h1>"]
    parts += [f"<p>{escape(fact)}</p>" for fact in facts(report)]
    for name, picture in plots(report).items():
        source = base64.b64encode(picture).decode()
        parts.append(f'<h2>{escape(name)}</h2><img alt="{escape(name)}" src="data:image/png;base64,{source}">')
    for name, heading, cells in tables(report):
        head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
        parts.append(f"<h2>{escape(name)}</h2><table><tr>{head}</tr>{body}</table>")
    head = f'<meta charset="utf-8"><title>{escape(title(report))}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
