"""The API check: which names of TensorRT our code uses, and whether a version's bindings have them.

    python tests/backends/tensorrt/bindings.py WHEEL...    # of tensorrt-cu13-bindings; needs no libraries

The bindings are one compiled file that cannot be imported without the vendor's libraries. What it registers (classes,
members, properties, methods, enumerators) stands in it as plain text, and that is what is read: a name that is not
there does not exist in that version. Signatures are compared where a module can be imported: tensorrt_rtx has the same
bindings.
"""

import ast
import json
import sys
import zipfile
from pathlib import Path

BACKENDS = Path(__file__).parents[3] / "engine" / "backends" / "tensorrt"
FILES = ("backend.py", "library.py", "build.py", "run.py", "plugins.py")
TABLE = Path(__file__).with_suffix(".json")
# Objects of TensorRT in our code, by the names of the variables that hold them.
HOLDERS = {
    "api", "builder", "network", "config", "parser", "engine", "context", "runtime", "refitter", "registry", "profile",
    "first", "layer", "tensor", "cache", "log", "severity", "described", "field", "_engine",
}  # fmt: skip
# Of ours, or of Python's own, although such a variable holds them.
OURS = {"errors", "lines", "clear", "log", "api", "items", "package", "build", "check", "load", "name", "attention",
        "loads", "search", "device", "values", "data"}  # fmt: skip
RTX_ONLY = {"get_engine_validity", "EngineInvalidityDiagnostics", "ComputeCapability", "num_compute_capabilities",
            "set_compute_capability"}  # fmt: skip  # behind hasattr, or only for targets


def used() -> set[str]:
    """Every attribute that our code asks of an object of TensorRT, and every name that it gives to getattr."""
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse((BACKENDS / file).read_text())):
            if isinstance(node, ast.Attribute):
                holder = node.value
                last = holder.id if isinstance(holder, ast.Name) else getattr(holder, "attr", "")
                if last in HOLDERS or last[:1].isupper():
                    found.add(node.attr)
    return {name for name in found if not name.startswith("_")} - OURS


def found_in(wheel: Path, names: set[str]) -> set[str]:
    """Those of the names that stand in the compiled bindings of a wheel, perhaps as the end of a longer one: linkers
    keep one copy of equal endings."""
    with zipfile.ZipFile(wheel) as opened:
        data = opened.read(next(name for name in opened.namelist() if name.endswith(".so")))
    return {name for name in names if name.encode() + b"\0" in data}


def main(wheels: list[str]) -> None:
    """Write bindings.json: per wheel the names that we use and it has."""
    table = {}
    for wheel in map(Path, wheels):
        version = wheel.name.split("-")[1]
        table[version] = sorted(found_in(wheel, used()))
        print(version, "lacks", sorted(used() - set(table[version])))
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
