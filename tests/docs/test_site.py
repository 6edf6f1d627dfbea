"""The manual says what the code says: flags, arguments, messages, figures, and links that lead somewhere.

`make docs` builds it, and fails on a link that mkdocs cannot follow; nothing here needs mkdocs."""

import argparse
import importlib.util
import re
from html import unescape
from pathlib import Path

import pytest
import yaml

from consisid.engine.run.options import Options

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
SITE = yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text())
# Flags that the manual names and that belong to other programs.
OTHERS = {"--gpus", "--budget"}  # of docker, of consisid.bench.tools.throughput


@pytest.fixture(scope="module")
def parsers(pages) -> dict[str, argparse.ArgumentParser]:
    return {name: parser for name, parser in pages.parsers().items() if parser is not None}


def flags_of(pages, parser: argparse.ArgumentParser) -> set[str]:
    found = {name for action in parser._actions for name in action.option_strings}
    return found.union(*(flags_of(pages, child) for child in pages.subcommands(parser).values()))


def test_every_flag_is_in_the_reference(pages, parsers):
    text = pages.commands()
    assert {"consisid-build", "consisid-generate", "consisid-bench"} <= parsers.keys()
    for name, parser in parsers.items():
        section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        named = re.findall(r"<code>(-[\w-]+)</code>", section[1])
        elsewhere = re.findall(r"<code>(-[\w-]+)</code>", text) if pages.subcommands(parser) else []
        assert flags_of(pages, parser) <= {*named, *elsewhere}, name


def test_a_flag_has_its_values_its_meaning_and_its_default(pages):
    parser = argparse.ArgumentParser("consisid-x", description="What it does.", epilog="%(prog)s --size 4")
    parser.add_argument("photo", nargs="?", help="a picture <of> somebody")
    parser.add_argument("-s", "--size", type=int, default=3, metavar="N", help="of it | in pixels")
    parser.add_argument("--kind", choices=("a", "b"), help="default: %(prog)s's own")
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    found = "\n".join(pages._command(parser))
    for text in (
        "What it does.", "<td>a picture &lt;of&gt; somebody</td>", "usage: consisid-x [-h]",
        "<code>-s</code>, <code>--size</code> <code>N</code></td><td>of it | in pixels (default 3)</td>",
        "<code>{a,b}</code></td><td>default: consisid-x&#x27;s own</td>", "consisid-x --size 4",
    ):  # fmt: skip
        assert text in found
    assert "<code>--hidden</code>" not in found


def test_a_command_of_commands_refers_to_those_with_a_name_of_their_own(pages, monkeypatch):
    whole = argparse.ArgumentParser("consisid", description="All of it.")
    below = whole.add_subparsers()
    for name in ("build", "serve"):
        below.add_parser(name, description=f"What {name} does.").add_argument(f"--of-{name}", help=f"for {name}")
    alone = {"consisid": whole, "consisid-build": argparse.ArgumentParser("consisid-build"), "consisid-x": None}
    monkeypatch.setattr(pages, "parsers", lambda: alone)
    text = pages.commands()
    assert "`consisid build` is [`consisid-build`](#consisid-build)." in text
    assert "### consisid serve\n\nWhat serve does." in text
    assert "<code>--of-serve</code>" in text
    assert "--of-build" not in text


@pytest.mark.parametrize("page", ["index", "quickstart", "commands", "memory", "lora", "schedulers", "performance",
                                  "troubleshooting", "faq", "python-api"])  # fmt: skip
def test_flags_that_are_named_exist(page, pages, parsers):
    known = set().union(*(flags_of(pages, parser) for parser in parsers.values())) | OTHERS
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (DOCS / f"{page}.md").read_text()))
    assert named - known == set()


def test_every_argument_of_generate_has_a_row(pages):
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", pages.arguments())
    named = [name for cell, _ in rows for name in re.findall(r"<code>(\w+)</code>", cell)]
    assert sorted(named) == sorted(Options.__dataclass_fields__)
    assert ("<code>num_inference_steps</code>", "<code>50</code>") in rows


def test_every_message_is_listed(pages):
    """Counted in another way: by the lines that raise."""
    found = pages.messages()
    passed_on = {"engine/face/extractor.py": 1}  # without words of its own
    for part in ("engine", "export", "bench"):
        for file in (ROOT / part).rglob("*.py"):
            raised = re.findall(r'raise (?:Input|Engine|Checkpoint|Backend|Face)Error\(\s*f?"', file.read_text())
            name = str(file.relative_to(ROOT))
            assert len(raised) <= sum(each == name for _, each, _ in found) + passed_on.get(name, 0), name
    listed = unescape(pages.errors())
    assert "no face found in the photo; give one where the face is sharp, upright and well lit" in listed
    assert "The GPU's clocks were throttled during the run (…); let it cool" in listed
    assert "### Warnings" in listed


def rows_of_messages() -> list[str]:
    text = (DOCS / "troubleshooting.md").read_text()
    tables = re.findall(r"\| message \| why, and what to do \|\n\|---\|---\|\n((?:\|.*\n)+)", text)
    return [row.split("|")[1].strip() for table in tables for row in table.splitlines()]


@pytest.mark.parametrize("row", rows_of_messages())
def test_a_message_of_the_troubleshooting_is_one_of_the_code(row, pages):
    for message in re.split("; (?=…)", row):
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")))
        assert any(pattern.search(text) for _, _, text in pages.messages()), message


def test_the_troubleshooting_is_about_much():
    assert len(rows_of_messages()) > 30


def test_the_navigation_has_every_page_once():
    entries = [next(iter(entry.values())) for entry in SITE["nav"]]
    named = [page for entry in entries for page in ([entry] if isinstance(entry, str) else entry)]
    generated = ["security.md"]
    assert sorted(named) == sorted([page.name for page in PAGES] + generated)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    """Also where the pages are read in the repository; security.md is a page of the manual alone."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [target for target in targets if target != "security.md" and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_marks_of_what_is_generated_are_known(page, pages):
    assert set(re.findall(r"<!-- generated: (\w+) -->", page.read_text())) <= pages.GENERATED.keys()


def test_links_of_the_repository_become_links_of_the_manual():
    pytest.importorskip("mkdocs", reason="mkdocs is installed by `make docs`")
    hooks = _module("hooks")
    assert hooks.in_site("bench/reports/h200.md") == "reports/h200.md"
    assert hooks.in_site("docs/models.md") == "models.md"
    assert hooks.in_site("engine/api.py") is None
    for page in ("reports/h200.md", "security.md", "models.md"):
        assert hooks.in_site(hooks.in_repository(page)) == page


def _module(name):
    """A file of docs/site."""
    spec = importlib.util.spec_from_file_location(f"docs_site_{name}", DOCS / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_device_has_a_page_with_its_plots(pages):
    found = pages.reports()
    assert {"cpu-tiny", "h200"} <= found.keys()
    assert "hollow" not in found
    listed = pages.devices()
    assert "[AMD EPYC, 2 cores](reports/cpu-tiny.md)" in listed
    assert "(reports/hollow.md)" in listed.partition("## Other tables")[2]
    text, pictures = pages.report_page("cpu-tiny")
    assert len(pictures) == 3
    assert all(f"]({name})" in text and png.startswith(b"\x89PNG") for name, png in pictures.items())
    assert "| AMD EPYC, 2 cores |" in text
    assert pages.report_page("h200") == ((pages.REPORTS / "h200.md").read_text(), {})


# Figures in a page that are worked out from those of a report: as a share, in milliseconds, rounded.
DERIVED = {
    "performance": {"1.5", "2.4", "2.2", "0.4"},
    "memory": {"0.4"},
    "quickstart": {"11.5", "3.11", "2.7", "1.4", "1.6"},
    "faq": {"1.5", "2.0"},
}


@pytest.mark.parametrize("page", DERIVED)
def test_figures_are_those_of_a_report(page):
    """Each number with a decimal point stands in a report that the page links to."""
    text = (DOCS / f"{page}.md").read_text()
    sources = [(DOCS / target).read_text() for target in re.findall(r"\]\((\.\./bench/reports/[\w.-]+\.md)\)", text)]
    plain = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
    figures = set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)", plain)) - DERIVED[page]
    assert [figure for figure in sorted(figures) if not any(figure in source for source in sources)] == []


def test_the_table_of_budgets_is_that_of_the_report():
    report = (ROOT / "bench" / "reports" / "hollow.md").read_text().partition("ConsisID-1.5")[0]
    rows = re.findall(r"^\| ([\w.]+) \| (.*) \|$", (DOCS / "memory.md").read_text(), re.MULTILINE)
    rows = [(budget, *rest.split(" | ")) for budget, rest in rows if budget == "none" or budget[0].isdigit()]
    assert len(rows) == 7
    for budget, predicted, reserved, weights, guidance, decoder in rows:
        row = rf"^\| {re.escape(budget)} \| {predicted} \| {reserved} \| .* \| {weights} \| {guidance} \| {decoder} \|"
        assert re.search(row, report, re.MULTILINE), budget


def test_arguments_that_share_a_line_get_one_each():
    pytest.importorskip("griffe", reason="griffe is installed by `make docs`")
    text = "What.\n\nArgs:\n    a, b: of both,\n        and more.\n    c: alone.\n\nRaises:\n    E: x, y: z.\n"
    expected = (
        "What.\n\nArgs:\n    a: of both,\n        and more.\n    b: of both,\n        and more.\n    c: alone.\n\n"
        "Raises:\n    E: x, y: z.\n"
    )
    assert _module("grouped").ungrouped(text) == expected
