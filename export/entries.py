"""One graph of a build: compiled, hashed and written down."""

import time
from collections.abc import Mapping
from pathlib import Path

from consisid.engine.backends import holds_weights
from consisid.engine.backends.tensorrt.library import BuildOptions
from consisid.engine.checkpoint.reading import Checkpoint
from consisid.engine.errors import CheckpointError
from consisid.engine.graphs.graph import Graph
from consisid.engine.manifest import BuildSpec, GraphEntry
from consisid.engine.util.files import sha256
from consisid.engine.weights.device import DeviceWeights

from .compile import compile_graph


def compiled(
    graph: Graph,
    folder: Path,
    spec: BuildSpec,
    store: DeviceWeights,
    options: BuildOptions,
    unusable: Mapping[str, str],
) -> GraphEntry:
    """Compile a graph into `folder`, and say what came of it.

    Args:
        unusable: backends that cannot build on this machine, with the reasons.

    Raises:
        CheckpointError: the checkpoint lacks weights of the graph.
        BackendError: the graph cannot be compiled.
    """
    start = time.perf_counter()
    names = list(graph.weights)
    _check_complete(graph, names, store.tensors.checkpoint)
    stem = folder / "graphs" / graph.name
    choice = compile_graph(
        spec.backend, graph, stem, store.device, store.dtype, lambda: store.layer(graph, names, 0), options, unusable
    )
    seconds = time.perf_counter() - start
    if holds_weights(choice.backend):
        names = []
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
