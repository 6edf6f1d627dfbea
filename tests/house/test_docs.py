"""What the documents say of files and rooms is so."""

import ast
import re
from pathlib import Path

import pytest
from support.count_models import MODELS, parameters

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "bench/TODO-gpu.md",
]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document):
    named = re.findall(r"\b(?:engine|kernels|export|bench|tests|docs)/[\w/.-]+\.(?:py|json|md)\b", document.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_files_of_rooms_exist():
    """Those that docs/architecture.md names without the part, in backticks."""
    named = re.findall(r"`([a-z_0-9]+/[a-z_0-9/]+\.py)`", ARCHITECTURE)
    assert named
    assert [name for name in named if not ((ROOT / "engine" / name).exists() or (ROOT / name).exists())] == []


def test_every_room_is_described_once():
    rows = re.findall(r"^\| `([^`]+)` \|", ARCHITECTURE, re.MULTILINE)
    rooms = [f"{path.parent.relative_to(ROOT)}/" for part in ("kernels", "export", "bench")
             for path in (ROOT / part).rglob("__init__.py")]  # fmt: skip
    rooms += [f"engine/{path.name}/" for path in (ROOT / "engine").iterdir() if (path / "__init__.py").exists()]
    rooms += [f"engine/{path.name}" for path in (ROOT / "engine").glob("*.py") if path.name != "__init__.py"]
    assert sorted(rows) == sorted(rooms)


@pytest.mark.parametrize("part", ["engine", "kernels", "export", "bench"])
def test_no_file_is_too_long_to_read(part):
    lengths = {str(path): len(path.read_text().splitlines()) for path in (ROOT / part).rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


@pytest.mark.parametrize(("file", "most"), [("engine/api.py", 60), ("export/build.py", 80)])
def test_the_two_roads_are_a_screen_each(file, most):
    """Without docstrings, imports, comments and empty lines."""
    source = (ROOT / file).read_text()
    left_out = set()
    for node in ast.walk(ast.parse(source)):
        documented = (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        )
        for each in [node.body[0]] if documented else [node] if isinstance(node, ast.Import | ast.ImportFrom) else []:
            left_out |= set(range(each.lineno, each.end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    assert sum(bool(line.split("#")[0].strip()) for number, line in lines if number not in left_out) <= most


@pytest.mark.parametrize("variant", MODELS, ids=lambda variant: variant.name)
def test_counts_of_the_models_are_those_of_their_shapes(variant):
    """The cheap part of docs/models.md."""
    text = (ROOT / "docs" / "models.md").read_text()
    column = 1 + MODELS.index(variant)
    table = [line.split("|") for line in text.splitlines() if line.count("|") == 4]
    rows = {cells[1].strip(): cells[1 + column].strip() for cells in table}
    found = parameters(variant)
    assert {kind: rows[kind] for kind in found} == {kind: f"{count / 1e6:,.1f} M" for kind, count in found.items()}
