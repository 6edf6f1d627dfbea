"""Compiling for backends whose engines hold their weights: the graph goes through an ONNX file, which is removed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consisid.engine.backends import backend
from consisid.engine.backends.tensorrt.library import PROFILES, BuildOptions
from consisid.engine.graphs.graph import Graph


def compile_through_onnx(
    name: str,
    graph: Graph,
    file: Path,
    dtype: torch.dtype,
    weights: Callable[[], Sequence[Tensor]],
    options: BuildOptions,
) -> Any:
    """Write the engine of a graph with its weights to `file`, by the backend `name`; returns Built."""
    from .model import skeleton, write

    onnx = file.with_suffix(".onnx")
    engines: Any = backend(name)
    engines.api  # noqa: B018  # raises where it is missing, before the graph is traced
    try:
        sizes = {"B": PROFILES["batched"]["B"][1]} if options.plugins else {}  # a plugin has one shape
        write(skeleton(graph, dtype, sizes), [w.cpu() for w in weights()], onnx)
        return engines.build(onnx, file, options)
    finally:
        for made in (onnx, onnx.with_name(onnx.name + ".data")):
            made.unlink(missing_ok=True)
