"""Each graph at full size by TensorRT for RTX, without a GPU: `python -m consisid.bench.tools.trt --output DIR`.

Random weights; each graph in a process of its own, so that its memory is its own and is given back; ONNX files and
engines are removed when they are measured. DIR/tensorrt-rtx.json is written row by row and goes on where it stopped.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from consisid.engine.backends import backend
from consisid.engine.backends.tensorrt.library import PROFILES, BuildOptions
from consisid.engine.backends.tensorrt.plugins import ATTRIBUTES
from consisid.engine.errors import ConsisIDError, InputError
from consisid.engine.graphs.graph import Graph
from consisid.engine.graphs.grouped import LAYERS, TEXT, TRUNK, grouped_table, spread
from consisid.engine.manifest import DTYPES
from consisid.engine.shapes import VideoShape
from consisid.engine.util.cli import run
from consisid.engine.variants import VARIANTS, Variant, variant_named

from ..core.environment import stamp
from ..core.tables import made_by, table, write_files
from ..core.weights import RandomWeights

NAME = "tensorrt-rtx"
PLUGINS = " with plugins"  # ends the name of a row
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "graph": lambda r: str(r["graph"]),
    "export s": lambda r: f"{r['export_seconds']:.0f}",
    "build s": lambda r: f"{r['seconds']:.1f}",
    "CPU s": lambda r: f"{r['cpu_seconds']:.0f}",
    "engine MB": lambda r: f"{r['bytes'] / 1e6:.1f}",
    "weights MB": lambda r: f"{r['weights'] / 1e6:.1f}",
    "scratch MB": lambda r: f"{r['scratch'] / 1e6:.1f}",
    "peak host GB": lambda r: f"{r['peak_host_bytes'] / 1e9:.2f}",
    "kernels": lambda r: str(r["layers"]),
    "fused attention": lambda r: str(r["fused"] or "-"),
}


def graphs(variant: Variant) -> dict[str, Graph]:
    """One graph of each kind: of equal shards the first."""
    found = grouped_table(variant, VideoShape.of(variant, None, None, None))
    trunk = spread(variant.transformer.num_layers, LAYERS)
    kept = {f"{TRUNK}_0", f"{TRUNK}_{len(trunk) - 1}", f"{TEXT}_0"}
    return {name: graph for name, graph in found.items() if name in kept or not name.startswith((TRUNK, TEXT))}


def stored_scores(variant: Variant) -> int:
    """Bytes of the scores of joint attention of both halves of guidance in bfloat16, if they were stored."""
    t, shape = variant.transformer, VideoShape.of(variant, None, None, None)
    return 2 * t.num_attention_heads * (t.max_text_seq_length + shape.video_tokens) ** 2 * 2


def measure(
    variant: Variant, row_name: str, dtype: torch.dtype, targets: Sequence[str], folder: Path
) -> dict[str, Any]:
    """The row of one graph, by its name, which says whether our Triton kernels are in the engine or TensorRT's own
    attention."""
    from consisid.export.onnx.model import skeleton, write

    name, plugins = row_name.removesuffix(PLUGINS), row_name.endswith(PLUGINS)
    graph, shape = graphs(variant)[name], VideoShape.of(variant, None, None, None)
    weights = RandomWeights(variant, shape, torch.device("cpu"), graph.dtype(dtype))
    start, onnx, engines = time.perf_counter(), folder / f"{name}.onnx", backend(NAME)
    made = skeleton(graph, dtype, {"B": PROFILES["batched"]["B"][1]} if plugins else {})
    traced = time.perf_counter() - start
    write(made, weights.of(graph)[0], onnx)
    row: dict[str, Any] = {
        "graph": row_name,
        "trace_seconds": traced,
        "export_seconds": time.perf_counter() - start,
        "onnx_bytes": sum(file.stat().st_size for file in folder.glob(f"{name}.onnx*")),
        "functions": sorted({node.op_type for node in made.model.graph.node if node.domain}),
    }
    try:
        options = BuildOptions(targets=tuple(targets), plugins=tuple(ATTRIBUTES) if plugins else ())
        row |= asdict(engines.build(onnx, folder / f"{name}.engine", options))  # type: ignore[attr-defined]
    except ConsisIDError as error:
        row["refused"] = str(error)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return row | {"cpu_seconds": time.process_time(), "peak_host_bytes": peak}


def measure_all(variant: Variant, dtype: str, targets: str, output: Path, again: Sequence[str]) -> dict[str, Any]:
    """All rows, each by a process of its own; writes DIR/tensorrt-rtx.json and .md."""
    file, engines = output / f"{NAME}.json", backend(NAME)
    output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "variant": variant.name,
        "shape": str(VideoShape.of(variant, None, None, None)),
        "dtype": dtype,
        "targets": targets.split(","),
        "layers_per_shard": LAYERS,
        "weight_streaming": True,
        "profiles": {name: dict(sizes) for name, sizes in PROFILES.items()},
        "stored_scores_bytes": stored_scores(variant),
        "made": stamp(torch.device("cpu")) | {"tensorrt_rtx": engines.api.__version__},  # type: ignore[attr-defined]
        "rows": [],
    }
    if file.is_file():
        report["rows"] = [row for row in json.loads(file.read_text())["rows"] if row["graph"] not in again]
    done = {row["graph"] for row in report["rows"]}
    for name in (*graphs(variant), f"{TRUNK}_0{PLUGINS}"):
        if name in done:
            continue
        command = [sys.executable, "-m", "consisid.bench.tools.trt", "--variant", variant.name, "--dtype", dtype]
        with TemporaryDirectory(dir=output) as folder:
            command += ["--target", targets, "--graph", name, "--output", folder]
            found = subprocess.run(command, capture_output=True, text=True, check=False, env=_linked(Path(folder)))
        if found.returncode:
            row = {"graph": name, "refused": f"the process ended with {found.returncode}: {found.stderr[-300:]}"}
        else:
            row = json.loads(found.stdout.splitlines()[-1])
        report["rows"].append(row | {"commit": report["made"]["commit"]})
        print(name, json.dumps(row), file=sys.stderr, flush=True)
        write_files(output, {file.name: json.dumps(report, indent=1) + "\n", f"{NAME}.md": markdown(report)})
    return report


def _linked(folder: Path) -> dict[str, str]:
    """An environment in which the ONNX parser finds its library by the name that it opens for a plugin."""
    spec = find_spec("tensorrt_rtx_libs")
    for place in (spec.submodule_search_locations or []) if spec else []:
        (folder / "libtensorrt_rtx.so").symlink_to(Path(place) / "libtensorrt_rtx.so.1")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    return {**os.environ, "LD_LIBRARY_PATH": path}


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    made, built = report["made"], [row for row in report["rows"] if "refused" not in row]
    refused = [f"- {row['graph']}: {row['refused']}" for row in report["rows"] if "refused" in row]
    lines = [
        f"# {report['variant']} by TensorRT for RTX {made['tensorrt_rtx']}",
        "",
        f"{report['shape']}, {report['dtype']}, {report['layers_per_shard']} layers a shard, weight streaming, "
        f"for {' and '.join(report['targets'])} in one engine. Built without a GPU; nothing was run. CPU s: of the "
        "whole process; the others are by the clock, on a machine that others used too.",
        "",
        f"Of equal shards one was built. Stored scores of joint attention would be "
        f"{report['stored_scores_bytes'] / 1e9:.1f} GB; scratch is what a call takes beside inputs, outputs and "
        "weights, with two samples where a graph takes any number. Fused attention: kernels that store no scores.",
        "",
        *table(list(COLUMNS), [[cell(row) for cell in COLUMNS.values()] for row in built]),
        "",
        *(["Refused:", "", *refused, ""] if refused else []),
        f"`{made['command']}`: {made_by(made)}",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser("python -m consisid.bench.tools.trt", description=__doc__)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--variant", choices=tuple(VARIANTS), default="preview")
    p.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    p.add_argument("--target", default="sm_89,sm_120")
    p.add_argument("--again", default="", help="graphs to measure although they are in the report")
    p.add_argument("--graph", help="measure one graph in this process, and print its row")
    options = p.parse_args(arguments)

    def work() -> None:
        variant, targets = variant_named(options.variant), options.target
        if options.graph is None:
            print(markdown(measure_all(variant, options.dtype, targets, options.output, options.again.split(","))))
            return
        name, known = options.graph, graphs(variant)
        if name.removesuffix(PLUGINS) not in known:
            raise InputError(f"There is no graph {name!r}; the graphs are {', '.join(known)}.")
        print(json.dumps(measure(variant, name, DTYPES[options.dtype], targets.split(","), options.output)))

    return run("trt", work)


if __name__ == "__main__":
    sys.exit(main())
