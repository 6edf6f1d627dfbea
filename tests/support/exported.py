"""ONNX files of graphs with random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from consisid.engine.graphs.graph import Graph
from consisid.export.onnx.model import skeleton, write

from .drawn import random_weights


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Path]:
    """exported(graph, dtype, sizes) -> its ONNX file."""

    def make(graph: Graph, dtype: torch.dtype = torch.float32, sizes: dict[str, int] | None = None) -> Path:
        file = tmp_path / f"{graph.name}.onnx"
        write(skeleton(graph, dtype, sizes), random_weights(graph, graph.dtype(dtype)), file)
        return file

    return make
