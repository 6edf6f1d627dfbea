"""What of the manual is generated: from the parsers of the commands, the errors in the code, and bench/reports."""

import argparse
import ast
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "bench" / "reports"
PARTS = ("engine", "export", "kernels", "bench")
WIDTH = 80  # characters of a usage line


def parsers() -> dict[str, argparse.ArgumentParser | None]:
    """The parser of each command that pyproject.toml names; None of one that only hands over to others."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    found = {}
    for name, target in scripts.items():
        # An entry point only hands over, see engine/util/interrupts.py.
        entry = target.partition(":")[0]
        module = import_module(entry.replace(".entry", ".main" if name == "consisid" else ".cli"))
        found[name] = module.parser() if hasattr(module, "parser") else None
    return found


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    return found


def commands() -> str:
    """Every command with its usage, its arguments and their meaning."""
    found, lines = parsers(), []
    for name, parser in found.items():
        lines += [f"## {name}", ""]
        if parser is None:
            continue
        lines += _command(parser)
        for word, child in subcommands(parser).items():
            if f"{name}-{word}" in found:
                lines += [f"`{name} {word}` is [`{name}-{word}`](#{name}-{word}).", ""]
            else:
                lines += [f"### {name} {word}", "", *_command(child)]
    return "\n".join(lines)


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = argparse.HelpFormatter(parser.prog, width=WIDTH)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    yield from [parser.description or "", "", "```text", formatter.format_help().strip(), "```", ""]
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if not isinstance(a, argparse._SubParsersAction)]
        actions = [action for action in actions if action.help is not argparse.SUPPRESS]
        if not actions:
            continue
        rows = [(_names(action, formatter), _meaning(action, formatter)) for action in actions]
        yield from [f"**{(group.title or '').capitalize()}**", "", html_table(("", ""), rows), ""]
    if parser.epilog:
        yield from ["```text", parser.epilog.replace("%(prog)s", parser.prog).strip(), "```", ""]


def _names(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    default = formatter._get_default_metavar_for_optional(action)
    values = "" if action.nargs == 0 else formatter._format_args(action, default)
    if not action.option_strings:
        return f"<code>{escape(formatter._format_args(action, action.dest))}</code>"
    names = ", ".join(f"<code>{name}</code>" for name in action.option_strings)
    return f"{names} <code>{escape(values)}</code>" if values else names


def _meaning(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    text = formatter._expand_help(action) if action.help else ""
    silent = action.default in (None, False, argparse.SUPPRESS) or action.default == []
    if not silent and "default" not in text:
        text += f" (default {action.default})"
    return escape(text)


def html_table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table as HTML, whose cells Markdown leaves alone; cells are HTML already."""
    heading = list(heading)
    head = "".join(f"<th>{cell}</th>" for cell in heading)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    header = f"<thead><tr>{head}</tr></thead>" if any(heading) else ""
    return f"<table>{header}<tbody>\n{body}</tbody></table>"


def kinds_of_error() -> list[str]:
    """The classes of engine/errors.py, the base first, and those of the bench."""
    tree = ast.parse((ROOT / "engine" / "errors.py").read_text())
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)] + ["RefusedError"]


@cache
def messages() -> list[tuple[str, str, str]]:
    """Kind, file and text of every message that the code raises or warns of, with "…" for what differs each time.

    Those without words of their own, which pass another's message on, are left out.
    """
    known, found = {*kinds_of_error(), "warn"}, []
    for file in (file for part in PARTS for file in sorted((ROOT / part).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and node.args:
                kind = getattr(node.func, "id", getattr(node.func, "attr", ""))
                text = " ".join(_text(node.args[0]).split())
                if kind in known and len(re.findall("[a-z]{2,}", text)) > 1:
                    found.append((kind, str(file.relative_to(ROOT)), text))
    return found


def _text(node: ast.expr) -> str:
    """A string of the source, with "…" for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(value.value if isinstance(value, ast.Constant) else "…" for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def errors() -> str:
    """Every message, by its kind."""
    found, lines = messages(), []
    for kind in [*kinds_of_error(), "warn"]:
        rows = sorted({(escape(text), f"<code>{file}</code>") for each, file, text in found if each == kind})
        if rows:
            title = "Warnings" if kind == "warn" else kind
            lines += [f"### {title}", "", html_table(("message", "raised in"), rows), ""]
    return "\n".join(lines)


def arguments() -> str:
    """The arguments of generate, from the docstring of Options (engine/run/options.py)."""
    tree = ast.parse((ROOT / "engine" / "run" / "options.py").read_text())
    (options,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Options")
    rows: list[list[str]] = []
    for line in (ast.get_docstring(options) or "").splitlines()[2:]:
        begins = re.match(r"([a-z_]+(?:, [a-z_]+)*): (.*)", line)
        if begins:
            rows.append([begins[1], begins[2]])
        elif line.strip():
            rows[-1][1] += " " + line.strip()
    defaults = {
        node.target.id: ast.unparse(node.value)
        for node in options.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value
    }  # fmt: skip
    cells = []
    for names, text in rows:
        each = names.split(", ")
        given = sorted({defaults[name] for name in each if defaults.get(name, "None") != "None"})
        code = ", ".join(f"<code>{name}</code>" for name in each)
        cells.append((code, ", ".join(f"<code>{escape(value)}</code>" for value in given), escape(text)))
    return html_table(("argument", "default", "what it is"), cells)


def examples() -> str:
    """The scripts of docs/examples: what each is for, how it is called, and its code."""
    lines = []
    scripts = (ROOT / "docs" / "examples").glob("*.py")
    for script in sorted(scripts, key=lambda file: (file.stem != "first_video", file.stem)):  # to begin with
        _, words, code = script.read_text().split('"""', 2)
        meaning, calls = words.strip().split("\n\n")
        title = script.stem.replace("_", " ").capitalize().replace("Lora", "LoRA")
        lines += [f"## {title}", "", meaning, "", "```bash", *(call.strip() for call in calls.splitlines()), "```", ""]
        lines += ["```python", code.strip(), "```", ""]
    return "\n".join(lines)


def reports() -> dict[str, dict[str, Any] | None]:
    """The reports of devices in bench/reports: what consisid-bench wrote as JSON, or None where there are tables alone,
    with the files that they are from in a folder beside."""
    found: dict[str, dict[str, Any] | None] = {}
    for file in sorted(REPORTS.glob("*.md")):
        data = file.with_suffix(".json")
        report = json.loads(data.read_text()) if data.exists() else None
        if isinstance(report, dict) and {"made", "engine", "rows", "waterfall"} <= report.keys():
            found[file.stem] = report
        elif file.with_suffix("").is_dir():
            found[file.stem] = None
    return found


def other_reports() -> list[Path]:
    return [file for file in sorted(REPORTS.glob("*.md")) if file.stem not in {*reports(), "README"}]


def heading_of(text: str) -> str:
    return text.partition("\n")[0].lstrip("# ").strip()


def devices() -> str:
    """A list of the pages of devices, and of the other tables."""
    lines = []
    for name, report in reports().items():
        device = report["made"]["device"] if report else heading_of((REPORTS / f"{name}.md").read_text())
        title = heading_of((REPORTS / f"{name}.md").read_text()) if report else "tables of single phases"
        lines.append(f"- [{device}](reports/{name}.md): {title}")
    lines += ["", "## Other tables", ""]
    lines += [f"- [{heading_of(file.read_text())}](reports/{file.stem}.md)" for file in other_reports()]
    return "\n".join(lines)


def report_page(name: str) -> tuple[str, dict[str, bytes]]:
    """The page of a report as Markdown, and its pictures by the names of their files."""
    report = reports().get(name)
    if not report:
        return (REPORTS / f"{name}.md").read_text(), {}
    from consisid.bench.report.plots import plots
    from consisid.bench.report.render import markdown

    pictures = {f"{name}-{number}.png": (title, png) for number, (title, png) in enumerate(plots(report).items(), 1)}
    first, *rest = re.split(r"^(?=## )", markdown(report), flags=re.MULTILINE)
    shown = "".join(f"## {title}\n\n![{title}]({file})\n\n" for file, (title, _) in pictures.items())
    return first + shown + "".join(rest), {file: png for file, (_, png) in pictures.items()}


# What xDiT has published of the preview on so many H100s, in seconds (its docs/performance/consisid.md).
XDIT = {1: "114.9 (diffusers)", 2: "59.7 (CFG)", 4: "40.7 (CFG, ring)", 6: "35.8 (CFG, ring)"}


def predicted() -> str:
    """Seconds of a video on several GPUs, by arithmetic."""
    import torch

    from consisid.engine.memory.costs import video_costs
    from consisid.engine.memory.planner import plan
    from consisid.engine.memory.simulate import MACHINES
    from consisid.engine.parallel.costs import spread
    from consisid.engine.parallel.mesh import Mesh
    from consisid.engine.shapes import VideoShape
    from consisid.engine.variants import PREVIEW

    shape, dtype = VideoShape.of(PREVIEW, None, None, None), torch.bfloat16
    one, rows = video_costs(PREVIEW, shape, dtype, device="cuda"), []
    given = {"batch": 1, "guided": True, "fused": True, "rows": False, "memory": False}
    (measured,) = re.findall(r"\| 50 steps, all of generate.*?\| ([\d.]+) \|", (REPORTS / "h200.md").read_text())
    bounds: dict[str, float] = {}
    for count in (1, 2, 4, 6, 8):
        mesh = Mesh.choose(count, PREVIEW.transformer.num_attention_heads)
        costs = one if count == 1 else spread(one, PREVIEW, shape, dtype, mesh, **given)
        found = {name: plan(None, costs, MACHINES[name], tiling=True) for name in ("h100", "h200")}
        bounds = bounds or {name: each.seconds for name, each in found.items()}
        sent = sum(stage.sent for stage in found["h100"].stages) / 2**30
        scaled = float(measured) * found["h200"].seconds / bounds["h200"]
        cells = (f"{found['h100'].seconds:.1f}", f"{found['h200'].seconds:.1f}", f"{scaled:.1f}")
        rows.append((str(count), escape(str(mesh)), f"{sent:.0f}", *cells, XDIT.get(count, "")))
    heading = (
        "GPUs", "mesh", "GiB sent by the first", "H100, at least, s", "H200, at least, s", "H200, scaled, s",
        "xDiT on H100, published, s",
    )  # fmt: skip
    return html_table(heading, rows)


GENERATED = {
    "commands": commands, "errors": errors, "arguments": arguments, "examples": examples, "devices": devices,
    "predicted": predicted,
}  # fmt: skip


def fill(markdown: str) -> str:
    """A page with what its marks `<!-- generated: NAME -->` stand for."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda mark: GENERATED[mark[1]](), markdown)
