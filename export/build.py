"""The path of a build: a checkpoint becomes graphs, a backend compiles each, and a manifest says what came of it."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from consisid.engine.backends import backend as find_backend
from consisid.engine.checkpoint import Checkpoint, write_checkpoint
from consisid.engine.errors import CheckpointError, EngineError, InputError
from consisid.engine.files import sha256, write_aside
from consisid.engine.graphs import graph_table, weight_shapes
from consisid.engine.manifest import (
    DTYPES,
    BuildSpec,
    GraphEntry,
    Manifest,
    describe_weights,
    kernels_hash,
    provenance,
    weights_hash,
)
from consisid.engine.opening import check_device
from consisid.engine.shapes import VideoShape


def build(
    checkpoint: str | Path,
    output: str | Path,
    *,
    backend: str = "eager",
    dtype: str | None = None,
    device: str = "cpu",
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    bundle: bool = False,
    report: Callable[[str, float], None] = lambda name, seconds: None,
) -> Manifest:
    """Build an engine folder.

    Args:
        checkpoint: a folder in the Hugging Face layout, a hub id, or "tiny" for a small one with random weights.
        output: the engine folder; it must not exist, and it appears only when it is complete.
        backend: who compiles the graphs.
        dtype: "bfloat16", "float16" or "float32"; default float32 on a CPU, else bfloat16.
        device: where the engine will run.
        height, width, num_frames: of the videos; default what the model was trained at.
        bundle: copy the checkpoint into the folder instead of referring to it by path and hash.
        report: called with the name of each graph and the seconds that it took.

    Raises:
        ConsisIDError: an input that cannot be used; nothing is left behind.
    """
    output, place = Path(output), check_device(device)
    dtype = dtype or ("float32" if place.type == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} is none of {', '.join(DTYPES)}.")
    compiler = find_backend(backend)
    if output.exists():
        raise EngineError(f"{output} exists already; name another folder, or remove it first.")
    with write_aside(output) as folder:
        source = _place_checkpoint(checkpoint, folder, bundle)
        shape = VideoShape.of(source.variant, height, width, num_frames)
        weights = describe_weights(source)
        spec = BuildSpec(
            source.variant, *shape.pixels, dtype, backend, str(place), kernels_hash(), weights_hash(weights)
        )  # fmt: skip
        graphs = {}
        for name, graph in graph_table(source.variant, shape).items():
            start = time.perf_counter()
            names = list(weight_shapes(graph.module()))
            missing = [
                s
                for n in names
                for i in range(len(graph.layers))
                for s in graph.sources(n, i)
                if not source.has(graph.part, s)
            ]
            if missing:
                raise CheckpointError(
                    f"{source.path / graph.part} lacks {len(missing)} tensors, among them {missing[0]}."
                )
            file = folder / "graphs" / f"{name}{compiler.SUFFIX}" if compiler.SUFFIX else None
            if file is not None:
                file.parent.mkdir(exist_ok=True)
                compiler.compile(graph, file, place, DTYPES[dtype])
            seconds = time.perf_counter() - start
            entry = (str(file.relative_to(folder)), file.stat().st_size, sha256(file)) if file else ()
            graphs[name] = GraphEntry(backend, names, seconds, *entry)
            report(name, seconds)
        root = str(source.path.relative_to(folder) if source.path.is_relative_to(folder) else source.path.resolve())
        manifest = Manifest(spec, provenance(place), graphs, root, weights)
        manifest.write(folder)
    return manifest


def _place_checkpoint(name: str | Path, folder: Path, bundle: bool) -> Checkpoint:
    inside = folder / "checkpoint"
    if str(name) == "tiny":
        return Checkpoint(write_checkpoint("tiny", inside))
    source = Checkpoint.find(name)
    if bundle:
        shutil.copytree(source.path, inside)
        return Checkpoint(inside)
    return source
