"""The loaded graphs of an engine with their weights: what every stage calls, whatever backend runs."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from .backends import Outputs, Runner
from .spans import LayerByLayer, Spans
from .variants import Variant


class Weights(Protocol):
    """Where the tensors of a call come from: engine/residency.py.

    version: another number when the same call takes other tensors.
    """

    version: int

    def take(self, name: str, layer: int) -> Sequence[Tensor]:
        """The tensors of a call, in the order that its graph takes them."""

    def done(self, name: str, layer: int) -> None:
        """The call that used them is queued."""

    def scratch(self, stage: str | None = None) -> AbstractContextManager[None]:
        """What is made inside is gone at the end of the stage; see residency.py."""

    def keep(self, tensor: Tensor) -> Tensor:
        """What `scratch` has made, for longer."""

    def expect(self, stage: str, passes: int) -> None:
        """From now on a stage of sizes.STAGES that begins goes through its weights so many times; else once."""


class Held(dict[str, Sequence[Sequence[Tensor]]]):
    """Weights that are simply there: by graph, per layer the tensors of a call."""

    version = 0

    def take(self, name: str, layer: int) -> Sequence[Tensor]:
        return self[name][layer]

    def done(self, name: str, layer: int) -> None:
        """They stay."""

    def scratch(self, stage: str | None = None) -> AbstractContextManager[None]:
        """There is no plan of the memory."""
        return nullcontext()

    def keep(self, tensor: Tensor) -> Tensor:
        return tensor

    def expect(self, stage: str, passes: int) -> None:
        """They stay, however often they are used."""


class Networks:
    """`networks("block", hidden, ..., layer=3)` runs a graph with the weights of that layer.

    Args:
        runners: the loaded graphs by name.
        weights: gives the tensors of each call.
        device, dtype: where and in what the graphs run.
        spans: how networks of many layers are cut into graphs.

    Attributes:
        calls: how often each graph has run, and each session of ONNX Runtime (face.py); of what `counted` gave, those
            of that alone.
    """

    def __init__(
        self,
        variant: Variant,
        runners: Mapping[str, Runner],
        weights: Weights,
        device: torch.device,
        dtype: torch.dtype,
        spans: Spans | None = None,
    ):
        self.variant, self.runners, self.weights = variant, runners, weights
        self.device, self.dtype = device, dtype
        self.spans = spans or LayerByLayer()
        self.calls: Counter[str] = Counter()
        self._all: Networks | None = None

    def counted(self) -> "Networks":
        """The same, with a count of its own."""
        found = copy.copy(self)
        found.calls, found._all = Counter(), self
        return found

    def under(self, runners: Mapping[str, Runner]) -> "Networks":
        """The same weights and count under other runners than the compiled ones."""
        found = copy.copy(self)
        found.runners, found.spans = runners, LayerByLayer()
        return found

    def count(self, name: str) -> None:
        """Something of this name runs."""
        self.calls[name] += 1
        if self._all is not None:
            self._all.count(name)

    def __call__(self, name: str, *inputs: Tensor, layer: int = 0) -> Outputs:
        self.count(name)
        tensors = self.weights.take(name, layer)
        with self.weights.scratch():
            outputs = self.runners[name](inputs, tensors)
        self.weights.done(name, layer)
        return self.weights.keep(outputs) if isinstance(outputs, Tensor) else tuple(map(self.weights.keep, outputs))

    def one(self, name: str, *inputs: Tensor, layer: int = 0) -> Tensor:
        """A graph with a single output."""
        output = self(name, *inputs, layer=layer)
        return output if isinstance(output, Tensor) else output[0]

    def many(self, name: str, *inputs: Tensor, layer: int = 0) -> tuple[Tensor, ...]:
        """A graph with several outputs."""
        output = self(name, *inputs, layer=layer)
        return (output,) if isinstance(output, Tensor) else tuple(output)
