"""The loaded graphs of an engine with their weights: what every stage calls, whatever backend runs."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .backends import Outputs, Runner
from .checkpoint import Checkpoint
from .graphs import Graph
from .variants import Variant


class Networks:
    """`networks("block", hidden, ..., layer=3)` runs a graph with the weights of that layer.

    Args:
        runners: the loaded graphs by name.
        weights: by graph, per layer the tensors of a call.
        device, dtype: where and in what the graphs run.

    Attributes:
        calls: how often each graph has run.
    """

    def __init__(
        self,
        variant: Variant,
        runners: Mapping[str, Runner],
        weights: Mapping[str, Sequence[Sequence[Tensor]]],
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.variant, self.runners, self.weights = variant, runners, weights
        self.device, self.dtype = device, dtype
        self.calls: Counter[str] = Counter()

    def __call__(self, name: str, *inputs: Tensor, layer: int = 0) -> Outputs:
        self.calls[name] += 1
        return self.runners[name](inputs, self.weights[name][layer])

    def one(self, name: str, *inputs: Tensor, layer: int = 0) -> Tensor:
        """A graph with a single output."""
        output = self(name, *inputs, layer=layer)
        return output if isinstance(output, Tensor) else output[0]

    def many(self, name: str, *inputs: Tensor, layer: int = 0) -> tuple[Tensor, ...]:
        """A graph with several outputs."""
        output = self(name, *inputs, layer=layer)
        return (output,) if isinstance(output, Tensor) else tuple(output)


class WeightStore:
    """The tensors of a checkpoint on a device; one that several graphs share is held once."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype):
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self._held: dict[tuple[str, ...], Tensor] = {}

    def _tensor(self, part: str, sources: tuple[str, ...], dtype: torch.dtype) -> Tensor:
        key = (part, *sources)
        if key not in self._held:
            pieces = [self.checkpoint.tensor(part, s, self.device).to(dtype) for s in sources]
            self._held[key] = pieces[0].contiguous() if len(pieces) == 1 else torch.cat(pieces)
        return self._held[key]

    def of(self, graph: Graph, names: Sequence[str]) -> list[tuple[Tensor, ...]]:
        """Per layer the tensors of a call, in the order of `names`."""
        return [self.layer(graph, names, layer) for layer in range(len(graph.layers))]

    def layer(self, graph: Graph, names: Sequence[str], layer: int) -> tuple[Tensor, ...]:
        """The tensors of one layer's call."""
        dtype = graph.dtype(self.dtype)
        return tuple(self._tensor(graph.part, graph.sources(name, layer), dtype) for name in names)
