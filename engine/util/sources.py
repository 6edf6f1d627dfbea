"""The sources that decide what compiled graphs contain and how they are called, as one hash."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

# By package, the files and folders (with all below them): kernels and their tuning, networks, the tables of graphs,
# backends, and what writes a graph as ONNX.
SOURCES = {
    "consisid.kernels": ("*",),
    "consisid.engine": ("networks", "backends", "graphs"),
    "consisid.export": ("onnx",),
}
# Names of files and folders that measure, tune or describe kernels and are in no graph.
TOOLS = frozenset({"tools", "instructions.json", "instructions.py", "resources.json", "sass.py"})
SUFFIXES = (".py", ".json")


def source_files() -> dict[str, Path]:
    """Every file that the hash is of, by package and name. Nothing is imported."""
    found: dict[str, Path] = {}
    for package, names in SOURCES.items():
        spec = find_spec(package)
        for root in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
            tops = [top for name in names for top in root.glob(name)]
            for file in (file for top in tops for file in (top, *top.rglob("*"))):
                inside = file.relative_to(root)
                if file.suffix in SUFFIXES and file.is_file() and TOOLS.isdisjoint(inside.parts):
                    found[f"{package}/{inside.as_posix()}"] = file
    return dict(sorted(found.items()))


def kernels_hash() -> str:
    """One hash for the names and the content of all of them."""
    digest = hashlib.sha256()
    for name, file in source_files().items():
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
