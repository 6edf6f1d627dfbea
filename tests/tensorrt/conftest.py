"""Graphs with random weights, and their ONNX files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from consisid.engine.graphs import Graph, weight_shapes
from consisid.export.onnx import skeleton, write


def random_weights(graph: Graph, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """As large as keeps activations at their size; variances positive."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for name, shape in weight_shapes(graph.module()).items():
        tensor = torch.randn(shape, generator=generator) * (shape[1:].numel() ** -0.5 if len(shape) > 1 else 0.1)
        tensors.append((tensor.abs() + 0.5 if name.endswith("running_var") else tensor).to(dtype))
    return tensors


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Path]:
    """exported(graph, dtype, sizes) -> its ONNX file."""

    def make(graph: Graph, dtype: torch.dtype = torch.float32, sizes: dict[str, int] | None = None) -> Path:
        file = tmp_path / f"{graph.name}.onnx"
        write(skeleton(graph, dtype, sizes), random_weights(graph, graph.dtype(dtype)), file)
        return file

    return make
