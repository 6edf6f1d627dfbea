"""PyTorch operator by operator: runs anywhere, at any shape, and is what the other backends are compared with."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from ..graphs.graph import Graph
from . import Outputs, Runner

SUFFIX = None


def compile(graph: Graph, path: Path, device: torch.device, dtype: torch.dtype) -> None:
    """There is nothing to compile: the module is made again when the folder is opened."""


def load(graph: Graph, path: Path | None, device: torch.device, weights: Sequence[str]) -> Runner:
    module = graph.module()

    def run(inputs: Sequence[Tensor], tensors: Sequence[Tensor]) -> Outputs:
        return functional_call(module, dict(zip(weights, tensors, strict=True)), tuple(inputs))

    return run
