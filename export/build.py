"""The path of a build: a checkpoint becomes graphs, a backend compiles each, and a manifest says what came of it."""

import time
from collections.abc import Callable
from pathlib import Path

from consisid.engine.checkpoint import Checkpoint
from consisid.engine.errors import CheckpointError, InputError
from consisid.engine.files import sha256
from consisid.engine.graphs import Graph, graph_table, weight_shapes
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
from consisid.engine.residency import WeightStore
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import Variant

from .choose import check_backend, compile_graph
from .source import Source
from .staging import staging


def build(
    checkpoint: str | Path | Variant,
    output: str | Path,
    *,
    backend: str = "auto",
    dtype: str | None = None,
    device: str = "cpu",
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    bundle: bool = False,
    random_weights: bool = False,
    report: Callable[[str, GraphEntry, int], None] = lambda name, entry, total: None,
) -> Manifest:
    """Build an engine folder.

    Args:
        checkpoint: a folder in the Hugging Face layout, a hub id, or "tiny" for a small one with random weights.
        output: the engine folder; it must not exist, and it appears only when it is complete. A build that was killed
            goes on where it was.
        backend: who compiles the graphs; "auto" times the candidates per graph and keeps the fastest that is right.
        dtype: "bfloat16", "float16" or "float32"; default float32 on a CPU, else bfloat16.
        device: where the engine will run.
        height, width, num_frames: of the videos; default what the model was trained at.
        bundle: copy the checkpoint into the folder instead of referring to it by path and hash.
        random_weights: `checkpoint` is a variant or its name, and its weights are random and stored nowhere.
        report: called after each graph with its name, its entry and the number of graphs.

    Raises:
        ConsisIDError: an input that cannot be used, before anything is written; or a graph that cannot be compiled.
    """
    place, backend = check_device(device), check_backend(backend)
    dtype = dtype or ("float32" if place.type == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} is none of {', '.join(DTYPES)}.")
    source = Source.find(checkpoint, random_weights, bundle)
    shape = VideoShape.of(source.variant, height, width, num_frames)
    with staging(Path(output), source.identity) as work:
        opened = source.open(work.folder)
        weights, table = describe_weights(opened), graph_table(opened.variant, shape)
        store = WeightStore(opened, place, DTYPES[dtype])
        origin = source.hash or weights_hash(weights)
        spec = BuildSpec(opened.variant, *shape.pixels, dtype, backend, str(place), kernels_hash(), origin)
        work.begin(spec)
        entries = {}
        for name, graph in table.items():
            entry = work.finished(name) or _compile(graph, work.folder, spec, store)
            work.finish(name, entry)
            entries[name] = entry
            report(name, entry, len(table))
        inside = opened.path.is_relative_to(work.folder)
        root = opened.path.relative_to(work.folder) if inside else opened.path.resolve()
        manifest = Manifest(spec, provenance(place), entries, str(root), weights)
        work.clean()
        manifest.write(work.folder)
    return manifest


def _compile(graph: Graph, folder: Path, spec: BuildSpec, store: WeightStore) -> GraphEntry:
    start = time.perf_counter()
    names = list(weight_shapes(graph.module()))
    _check_complete(graph, names, store.checkpoint)
    stem = folder / "graphs" / graph.name
    choice = compile_graph(spec.backend, graph, stem, store.device, store.dtype, lambda: store.layer(graph, names, 0))
    seconds = time.perf_counter() - start
    if choice.file is None:
        return GraphEntry(choice.backend, names, seconds, choice.milliseconds, choice.rejected)
    file, size = str(choice.file.relative_to(folder)), choice.file.stat().st_size
    times, reasons = choice.milliseconds, choice.rejected
    return GraphEntry(choice.backend, names, seconds, times, reasons, file, size, sha256(choice.file))


def _check_complete(graph: Graph, names: list[str], checkpoint: Checkpoint) -> None:
    wanted = [s for name in names for layer in range(len(graph.layers)) for s in graph.sources(name, layer)]
    missing = [source for source in wanted if not checkpoint.has(graph.part, source)]
    if missing:
        raise CheckpointError(f"{checkpoint.path / graph.part} lacks {len(missing)} tensors, among them {missing[0]}.")
