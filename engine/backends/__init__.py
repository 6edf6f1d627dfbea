"""How a graph is compiled and run. One file per backend, imported when it is first asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from ..errors import BackendError
from ..graphs.graph import Graph

Outputs = Tensor | tuple[Tensor, ...]
Runner = Callable[[Sequence[Tensor], Sequence[Tensor]], Outputs]
"""(inputs, weights) -> outputs: a loaded graph. The weights come in the order of graphs.weight_shapes."""


class Backend(Protocol):
    """What a module of this package offers: compile and load, side by side."""

    SUFFIX: str | None
    """The ending of the file of a compiled graph; None where there is nothing to write."""

    def compile(self, graph: Graph, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Write the compiled graph to `path`. Backends whose engines hold their weights have `build` in its place."""

    def load(self, graph: Graph, path: Path | None, device: torch.device, weights: Sequence[str]) -> Runner:
        """Make a compiled graph callable. `weights` are the names of the tensors that a call brings. A call waits for
        nothing: it may be captured as a CUDA graph."""


@dataclass(frozen=True)
class Row:
    """A backend: its module, or the object in it after a colon, and whether its engines have their weights inside, so
    that their runners take none."""

    place: str
    holds_weights: bool = False


BACKENDS: dict[str, Row] = {
    "eager": Row(".eager"),  # PyTorch operator by operator; any size
    "inductor": Row(".inductor"),  # compiled ahead of time by AOTInductor
    "tensorrt": Row(".tensorrt.backend:TENSORRT", holds_weights=True),  # for the GPU of this machine
    "tensorrt-rtx": Row(".tensorrt.backend:RTX", holds_weights=True),  # also for other GPUs (--target)
}


def holds_weights(name: str) -> bool:
    """Whether engines of this backend have their weights inside."""
    return name in BACKENDS and BACKENDS[name].holds_weights


def backend(name: str) -> Backend:
    """The backend called `name`; raises BackendError with the names that exist."""
    if name not in BACKENDS:
        raise BackendError(f"There is no backend called {name!r}; the backends are {', '.join(BACKENDS)}.")
    module, _, found = BACKENDS[name].place.partition(":")
    imported = import_module(module, __name__)
    return cast(Backend, getattr(imported, found) if found else imported)
