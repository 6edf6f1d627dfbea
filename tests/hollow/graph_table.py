"""What AOTInductor makes of every graph, without a GPU: kernels, calls of libraries, copies, double precision, bytes.

    make cuda TESTS=tests/hollow/test_graphs.py                                 # a part of TINY, compared
    .venv-cuda/bin/python tests/hollow/graph_table.py --check                   # every row of graphs.json, compared
    .venv-cuda/bin/python tests/hollow/graph_table.py                           # adds what graphs.json lacks
    .venv-cuda/bin/python tests/hollow/graph_table.py --variant preview --arch 90 89 \
        --output bench/reports/hollow-graphs                                    # full size, .json and .md

Each graph is compiled by engine/backends/inductor.py for the hollow device that says it is the architecture, in
bfloat16, with two samples where there may be several. A package is then read, not run: all counts
are of what one call of the graph does. Rows hold for one release of PyTorch; what is in a file for the release in use
is kept and only what is missing compiled, so that an interrupted run goes on (`--again` compiles all anew). With
`--check` nothing is written.

    kernels   Triton kernels that are launched, ours and generated ones
    ours      of them, those written by hand in kernels/
    extern    calls that PyTorch or a library answers, by name; operators of ours with a namespace. What these launch
              in turn is not counted
    copies    passes over memory that compute nothing: generated kernels whose operators only move, cut, join or cast,
              and calls of copy_ and clone
    cats      of them, those that join tensors
    clones    of them, those that do nothing but make a tensor contiguous or of its own (no cats)
    bias      generated kernels that add nothing but a convolution's bias, which cuDNN is not given
    fp64      instructions in double precision of a kernel's machine code, as kernels/aot counts them, by kernel; cos
              and sin have three an element, for arguments past 10^5
    bytes     Inductor's estimate of what all kernels and calls read and write together: each of a kernel's inputs and
              outputs once, or only the part that it can touch; weights count, intermediate results inside a kernel or
              a call do not. What a kernel of ours writes counts twice, because it might also read it, and calls with
              several results count nothing
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
TINY = Path(__file__).with_name("graphs.json")
REPORT = ROOT / "bench" / "reports" / "hollow-graphs"  # of the preview model, .json and .md

LIMIT = 900  # seconds for one graph
MOVES = frozenset(
    {
        "_to_copy", "_unsafe_view", "alias", "as_strided", "cat", "clone", "constant_pad_nd", "copy", "copy_", "expand",
        "permute", "repeat", "reshape", "select", "select_scatter", "slice", "slice_scatter", "split",
        "split_with_sizes", "squeeze", "stack", "t", "transpose", "unbind", "unsqueeze", "view",
    }
)  # fmt: skip
# What a package calls that starts nothing on the device: memory, and questions about tensors. The alignment of inputs
# is mended by clone_preserve_strides, in branches that our tensors never take.
QUIET = re.compile(
    r"empty_strided\w*|new_uninitialized_tensor|clone_preserve_strides|get_\w+|delete_\w+|device_type_\w+"
)
CALL = re.compile(r"\bcall_(\w+?)(?:_\d+)?\(|\baoti_torch_(?:cuda_)?(\w+?)\((?:proxy_executor, (\d+))?")
ORIGINS = re.compile(r"// Topologically Sorted Source Nodes: .*Original ATen: \[(.*)\]")
COUNTS = ("copies", "cats", "clones", "bias")
Row = dict[str, Any]


# --- one graph


def count_calls(wrapper: str, proxied: Sequence[str]) -> Row:
    """What one call of a package does, all but `fp64` and `bytes`.

    Args:
        wrapper: the C++ of the package; one line of its `run_impl` is one launch, allocation or call, after a comment
            that names the ATen operators which it stands for.
        proxied: names of the operators that it calls through PyTorch's dispatcher, by their number.

    Raises:
        ValueError: a launch of a generated kernel without such a comment: Inductor has changed.
    """
    start = wrapper.index("::run_impl(")
    kernels = ours = copies = cats = clones = bias = 0
    extern: Counter[str] = Counter()
    origins: frozenset[str] | None = None
    for line in wrapper[start : wrapper.index("// AOTInductorModel::run_impl", start)].splitlines():
        if comment := ORIGINS.search(line):
            origins = frozenset(name.removeprefix("aten.") for name in comment[1].split(", "))
            continue
        for kernel, call, number in CALL.findall(line):
            if kernel:
                kernels += 1
                if not kernel.startswith("triton_"):
                    ours, origins = ours + 1, None
                    continue
                if origins is None:
                    raise ValueError(f"{kernel} stands for no operators: {line.strip()}")
                moved = origins <= MOVES
                bias += not moved and origins <= MOVES | {"convolution"}
            elif QUIET.fullmatch(call):
                continue
            else:
                name = proxied[int(number)] if call == "proxy_executor_call_function" else call.removesuffix("_out")
                extern[name] += 1
                moved, origins = name in ("copy_", "clone"), frozenset([name])
            joins = not origins.isdisjoint(("cat", "stack"))
            copies += moved
            cats += moved and joins
            clones += moved and "clone" in origins and not joins
            origins = None
    return {
        "kernels": kernels, "ours": ours, "extern": dict(sorted(extern.items())), "copies": copies, "cats": cats,
        "clones": clones, "bias": bias,
    }  # fmt: skip


def count_double(cubin: bytes) -> tuple[str, int]:
    """A kernel's name, and how many instructions of its machine code are in double precision."""
    from consisid.kernels.aot.resources import count_fp64, run_tool

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        code = run_tool("nvdisasm", "-c", "-ndf", file.name)
    named = re.search(r"^\s*\.section\s+\.text\.(\w+)", code, re.MULTILINE)
    assert named is not None, "a cubin without a kernel"
    return named[1], count_fp64(code)


def read_package(package: Path) -> Row:
    """All of a row but `bytes`."""
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        wrapper = next(name for name in names if name.endswith(".wrapper.cpp"))
        nodes = wrapper.removesuffix(".cpp") + ".json"
        proxied = json.loads(archive.read(nodes))["nodes"] if nodes in names else []
        row = count_calls(archive.read(wrapper).decode(), [entry["node"]["target"] for entry in proxied])
        double: Counter[str] = Counter()
        for name in names:
            if name.endswith(".cubin"):
                kernel, count = count_double(archive.read(name))
                double[kernel] += count
    return row | {"fp64": {kernel: count for kernel, count in sorted(double.items()) if count}}


def measure(variant: str, names: Sequence[str]) -> Iterator[Row]:
    """Compile graphs for the device of this process, and read them."""
    import torch
    from torch._inductor import metrics

    from consisid.engine.backends import backend

    torch.backends.cuda.enable_cudnn_sdp(False)
    torch._logging.set_logs(inductor_metrics=True)  # or Inductor does not count bytes
    table = graphs(variant)
    for name in names:
        metrics.reset()
        with tempfile.TemporaryDirectory() as place:
            package = Path(place) / f"{name}.pt2"
            backend("inductor").compile(table[name], package, torch.device("cuda", 0), torch.bfloat16)
            yield read_package(package) | {"bytes": int(metrics.num_bytes_accessed)}


def graphs(variant: str) -> Mapping[str, Any]:
    """The graphs of a model's own video, by name."""
    from consisid.engine.graphs.table import graph_table
    from consisid.engine.shapes import VideoShape
    from consisid.engine.variants import VARIANTS

    model = VARIANTS[variant]
    return graph_table(model, VideoShape.of(model, None, None, None))


# --- tables: {release of PyTorch: {"sm_90": {graph: Row}}}


def release() -> str:
    """Of the PyTorch in use: 2.11.0."""
    import torch

    return torch.__version__.partition("+")[0]


def measured(variant: str, names: Sequence[str], arch: int) -> Iterator[tuple[str, Row]]:
    """Graphs and their rows, in a process that is the device. A graph that does not compile, or not in time, is a row
    that says so."""
    from hollow.build import environment

    left = list(names)
    device = {"HOLLOW_DEVICES": "1", "HOLLOW_SM": str(arch), "HOLLOW_GIB": "140"}
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile("w+") as errors:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}
        variables = {**os.environ, **environment(), **device, **caches}
        while left:
            command = [sys.executable, __file__, "--variant", variant, "--rows", *left]
            process = subprocess.Popen(
                command, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
            for row in _rows(process):
                yield left.pop(0), row
            if left:  # it ended in this one
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["it ended without a word"])[-1][:200]
                late = process.wait() == -signal.SIGKILL
                yield left.pop(0), {"missing": f"not compiled within {LIMIT // 60} minutes" if late else last}


def _rows(process: "subprocess.Popen[str]") -> Iterator[Row]:
    """The rows that a process prints, until it ends, or is ended because there was none for so long."""
    assert process.stdout is not None
    while True:
        limit = threading.Timer(LIMIT, os.killpg, (process.pid, signal.SIGKILL))
        limit.start()
        line = process.stdout.readline()
        limit.cancel()
        if not line:
            return
        if line.startswith("{"):
            yield json.loads(line)


def differences(kept: Row, made: Row) -> list[str]:
    """What is not as in a kept row, one line each."""
    return [
        f"{key} was {kept.get(key)}, is {made.get(key)}"
        for key in sorted({*kept, *made})
        if kept.get(key) != made.get(key)
    ]


def render(table: Mapping[str, Any]) -> str:
    """The table of a file as Markdown."""
    lines = [
        "# What AOTInductor makes of each graph",
        "",
        f"ConsisID-{table['variant']}, bfloat16, a video of its own size; compiled without a GPU (tests/hollow). "
        "What one call of each graph does; nothing is timed. `python tests/hollow/graph_table.py --help` says what a "
        "column is.",
    ]
    for torch, architectures in table["rows"].items():
        for arch, rows in architectures.items():
            lines += [
                "",
                f"## PyTorch {torch}, {arch}",
                "",
                "| graph | kernels | ours | extern | copies | cats | clones | bias | fp64 | GB |",
                "|---|---|---|---|---|---|---|---|---|---|",
            ]
            for name, row in rows.items():
                if "missing" in row:
                    lines.append(f"| {name} | missing: {row['missing']} | | | | | | | | |")
                    continue
                extern = ", ".join(f"{count} {call}" for call, count in row["extern"].items())
                counts = [row["kernels"], row["ours"], extern, *(row[key] for key in COUNTS), sum(row["fp64"].values())]
                lines.append(f"| {name} | {' | '.join(map(str, counts))} | {row['bytes'] / 1e9:.3f} |")
            double = Counter[str]()
            for row in rows.values():
                double.update(row.get("fp64", {}))
            if double:
                lines += [
                    "",
                    "In double precision: " + ", ".join(f"{k} ({n})" for k, n in sorted(double.items())) + ".",
                ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser("graph_table", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--variant", default="tiny")
    p.add_argument("--arch", type=int, nargs="+", default=[90], metavar="SM")
    p.add_argument("--graphs", nargs="+", metavar="NAME", help="only these")
    p.add_argument("--output", type=Path, default=TINY, help="the .json; TINY's has no .md beside it")
    p.add_argument("--again", action="store_true", help="compile also what the file has")
    p.add_argument("--check", action="store_true", help="compile all that the file has, and compare")
    p.add_argument("--render", action="store_true", help="only write the .md from the .json")
    p.add_argument("--rows", nargs="+", help=argparse.SUPPRESS)
    options = p.parse_args(arguments)
    if options.rows:
        for row in measure(options.variant, options.rows):
            print(json.dumps(row), flush=True)
        return 0
    file = options.output.with_suffix(".json")
    table: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"variant": options.variant, "rows": {}}
    if table["variant"] != options.variant:
        p.error(f"{file} is a table of {table['variant']}")
    names = list(graphs(options.variant))
    if unknown := sorted({*(options.graphs or ())} - {*names}):
        p.error(f"there is no graph {', '.join(unknown)}; the graphs are {', '.join(names)}")
    chosen = [name for name in names if options.graphs is None or name in options.graphs]
    kept = table["rows"].get(release(), {})

    def has(arch: int, name: str) -> bool:
        return "kernels" in kept.get(f"sm_{arch}", {}).get(name, {})

    if options.check:
        wanted = {arch: [name for name in chosen if has(arch, name)] for arch in options.arch}
        return check(options.variant, kept, wanted)
    for arch in () if options.render else options.arch:
        for name, row in measured(options.variant, [n for n in chosen if options.again or not has(arch, n)], arch):
            print(f"sm_{arch} {name} {json.dumps(row)}", flush=True)
            rows = table["rows"].setdefault(release(), {}).get(f"sm_{arch}", {}) | {name: row}
            table["rows"][release()][f"sm_{arch}"] = {each: rows[each] for each in names if each in rows}
            table["rows"] = dict(sorted(table["rows"].items(), key=lambda item: [int(n) for n in item[0].split(".")]))
            write(table, file)
    if options.render:
        write(table, file)
    return 0


def write(table: Mapping[str, Any], file: Path) -> None:
    file.write_text(json.dumps(table, indent=1) + "\n")
    if file != TINY:
        file.with_suffix(".md").write_text(render(table))


def check(variant: str, kept: Mapping[str, Any], wanted: Mapping[int, Sequence[str]]) -> int:
    """Compare; 1 if a row is another, 2 if there is none to compare with."""
    if not any(wanted.values()):
        print(f"There are no such rows for PyTorch {release()}", file=sys.stderr)
        return 2
    found = [
        f"sm_{arch} {name}: {line}"
        for arch, names in wanted.items()
        for name, row in measured(variant, names, arch)
        for line in differences(kept[f"sm_{arch}"][name], row)
    ]
    print("\n".join(found) or f"{sum(map(len, wanted.values()))} graphs as in the table")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
