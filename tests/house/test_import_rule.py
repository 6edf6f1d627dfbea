"""The import rule: which room may import which. Lazy imports and those for type checkers count."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("kernels", "engine", "export", "bench")  # each imports those before it, and itself
# From the ground up; a room imports rooms of lower floors of its part only.
ENGINE = (
    ("errors",),
    ("util",),
    ("configs",),
    ("variants",),
    ("shapes",),
    ("postprocess", "shortcuts"),
    ("video",),
    ("networks", "sampling"),
    ("graphs",),
    ("checkpoint", "backends", "memory"),
    ("manifest",),
    ("lora", "runtime"),
    ("weights", "face", "decode", "text"),
    ("conditioning",),
    ("first_block", "prediction"),
    ("denoise", "engine"),
    ("run",),
    ("parallel",),
    ("many",),
    ("api",),
    ("flags",),
    ("pipeline", "cli"),
    ("serve",),
    ("main",),
    ("entry",),
    ("__main__",),
)
BENCH = (("core",), ("report", "gpu", "tools"), ("cli",), ("entry",))
FLOOR = {
    part: {room: floor for floor, rooms in enumerate(floors) for room in rooms}
    for part, floors in (("engine", ENGINE), ("bench", BENCH))
}
FACADE = {
    "": {"api", "errors", "face", "many", "pipeline", "shortcuts", "video"}
}  # what `from consisid.engine import ...` offers, each when asked for
# A pipeline builds when it is told to, by its compile().
EXCEPTIONS = {"engine.pipeline.compiled imports export"}


def modules() -> dict[str, Path]:
    """Every module of the four parts by its dotted name below consisid."""
    found = {}
    for part in PARTS:
        for path in (ROOT / part).rglob("*.py"):
            names = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


MODULES = modules()


def imported(name: str, source: str, is_package: bool) -> Iterator[str]:
    """The modules of ours that a module's text imports."""
    package = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("consisid.") for alias in node.names if "consisid." in alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = [*package[: len(package) - node.level + 1], *filter(None, [node.module])]
            elif node.module and node.module.split(".")[0] == "consisid":
                base = node.module.split(".")[1:]
            else:
                continue
            for alias in node.names:
                inside = ".".join([*base, alias.name])
                yield inside if inside in MODULES else ".".join(base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "import_module",
            "import_interruptibly",
            "start",
        ):
            for given in (text for text in ast.walk(node) if isinstance(text, ast.Constant)):
                if str(given.value).startswith("consisid."):
                    yield str(given.value).removeprefix("consisid.")


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


def faults(name: str, source: str, is_package: bool = False) -> list[str]:
    """What of a module's imports is against the rule."""
    part, room, found = name.split(".")[0], room_of(name), []
    for other in imported(name, source, is_package):
        to = other.split(".")[0]
        if part != to:
            allowed = PARTS.index(to) < PARTS.index(part)
        elif part not in FLOOR or room == room_of(other):
            allowed = True
        elif part == "engine" and room in FACADE:
            allowed = room_of(other) in FACADE[room]
        else:
            allowed = room_of(other) == "" or FLOOR[part][room_of(other)] < FLOOR[part][room]
        found += [] if allowed else [f"{name} imports {other}"]
    return [fault for fault in found if fault not in EXCEPTIONS]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name):
    path = MODULES[name]
    assert faults(name, path.read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize("part", FLOOR)
def test_every_room_has_a_floor(part):
    rooms = {room_of(name) for name in MODULES if name.startswith(part)} - {""}
    assert rooms == set(FLOOR[part])


def test_no_circles_between_files():
    graph = {
        name: {
            other for other in imported(name, path.read_text(), False) if f"{name} imports {other}" not in EXCEPTIONS
        }
        for name, path in MODULES.items()
        if path.name != "__init__.py"
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("engine.memory.planner", "from ..run.run import Run"),
        ("engine.denoise", "from .engine import Engine"),
        ("engine.graphs.table", "if TYPE_CHECKING:\n    from ..runtime.executor import GraphExecutor"),
        ("engine.util.files", "def lazy():\n    from consisid.engine.video import Video"),
        ("engine.api", "import_module('consisid.export.build')"),
        ("kernels.cost", "import consisid.engine.errors"),
        ("export.build", "from consisid.bench import core"),
        ("bench.core.samples", "from ..report.render import html"),
        ("bench.gpu.videos", "from ..report import budgets"),
        ("bench.tools.similarity", "from ..cli import main"),
    ],
)
def test_an_import_that_is_turned_round_is_found(name, line):
    assert len(faults(name, line)) == 1
