"""TensorRT, and TensorRT for RTX, which builds for RTX cards on a machine without any: one code path over both modules.

Both take a graph as an ONNX file with its weights, strongly typed, and give an engine that holds them. An engine has
one profile per entry of PROFILES that names a symbol of its graph: a profile is a set of fixed sizes.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...graphs.graph import Graph
from .build import Built, build
from .library import BuildOptions, Library
from .plugins import ATTRIBUTES, register
from .run import LoadedEngine


class TensorRT(Library):
    """A backend whose engines hold their weights: `build` takes the place of compile."""

    SUFFIX = ".engine"

    @cached_property
    def plugins(self) -> Any:
        """All plugins, known to the library while this is kept."""
        return register(self, tuple(ATTRIBUTES))

    def build(self, onnx: Path, file: Path, options: BuildOptions) -> Built:
        """Write the engine of an ONNX file; see build.build."""
        return build(self, onnx, file, options)

    def load(self, graph: Graph, path: Path | None, device: torch.device, weights: Sequence[str]) -> LoadedEngine:
        """An engine, ready to be called with its inputs; `weights` is empty, it holds its own.

        Raises:
            BackendError: no GPU, a driver that is too old, or an engine that this GPU or version cannot load.
        """
        assert path is not None
        self.check(device)
        self.plugins  # noqa: B018  # an engine may hold some
        return LoadedEngine(self, path, device)


TENSORRT = TensorRT("tensorrt", "tensorrt", "tensorrt")
RTX = TensorRT("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx")
