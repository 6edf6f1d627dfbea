"""The loaded graphs of an engine with their weights: what every stage calls, whatever backend runs.

What has many layers runs through whatever graphs an engine has, one per kind of layer or one per group of layers; the
stages do not know which.
"""

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from ..backends import Outputs, Runner
from ..graphs.grouped import TEXT, TRUNK, faces_of, spread
from ..graphs.trunk import blocks
from ..variants import Variant


class Weights(Protocol):
    """Where the tensors of a call come from: weights/manager.py.

    version: another number when the same call takes other tensors.
    """

    version: int

    def acquire(self, name: str, layer: int) -> Sequence[Tensor]:
        """The tensors of a call, in the order that its graph takes them."""

    def release(self, name: str, layer: int) -> None:
        """The call that used them is queued."""

    def scratch(self, stage: str | None = None) -> AbstractContextManager[None]:
        """What is made inside is gone at the end of the stage; see weights/manager.py."""

    def keep(self, tensor: Tensor) -> Tensor:
        """What `scratch` has made, for longer."""

    def expect(self, stage: str, passes: int) -> None:
        """A stage of graphs.table.STAGES that begins from now on goes through its weights so many times, else once; the
        present one so many times more at least."""

    def expected(self, stage: str) -> int:
        """What was said by `expect`."""

    def together(self, stage: str, units: int | None = None) -> AbstractContextManager[None]:
        """Inside, several devices go through the weights of a stage; see weights/manager.py."""

    def tidy(self) -> None:
        """Large tensors have been let go of, and small ones that stay are made next."""


class Held(dict[str, Sequence[Sequence[Tensor]]]):
    """Weights that are simply there: by graph, per layer the tensors of a call."""

    version = 0

    def acquire(self, name: str, layer: int) -> Sequence[Tensor]:
        return self[name][layer]

    def release(self, name: str, layer: int) -> None:
        """They stay."""

    def scratch(self, stage: str | None = None) -> AbstractContextManager[None]:
        """There is no plan of the memory."""
        return nullcontext()

    def keep(self, tensor: Tensor) -> Tensor:
        return tensor

    def expect(self, stage: str, passes: int) -> None:
        """They stay, however often they are used."""

    def expected(self, stage: str) -> int:
        return 1

    def together(self, stage: str, units: int | None = None) -> AbstractContextManager[None]:
        return nullcontext()

    def tidy(self) -> None:
        """There is no plan of the memory."""


class GraphExecutor(ABC):
    """`executor("block", hidden, ..., layer=3)` runs a graph with the weights of that layer.

    Shapes: B samples, T text tokens, V video tokens, S = T + V, C channels, N steps, E face attentions.

    Args:
        runners: the loaded graphs by name.
        weights: gives the tensors of each call.
        device, dtype: where and in what the graphs run.

    Attributes:
        calls: how often each graph has run, and each session of ONNX Runtime (face/extractor.py); of what `counted`
            gave, those of that alone.
    """

    def __init__(
        self,
        variant: Variant,
        runners: Mapping[str, Runner],
        weights: Weights,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.variant, self.runners, self.weights = variant, runners, weights
        self.device, self.dtype = device, dtype
        self.calls: Counter[str] = Counter()
        self._all: GraphExecutor | None = None

    def counted(self) -> "GraphExecutor":
        """The same, with a count of its own."""
        found = copy.copy(self)
        found.calls, found._all = Counter(), self
        return found

    def under(self, runners: Mapping[str, Runner]) -> "GraphExecutor":
        """The same weights and count under other runners, a graph per kind of layer."""
        found = PerLayer(self.variant, runners, self.weights, self.device, self.dtype)
        found.calls, found._all = self.calls, self._all
        return found

    def count(self, name: str) -> None:
        """Something of this name runs."""
        self.calls[name] += 1
        if self._all is not None:
            self._all.count(name)

    def __call__(self, name: str, *inputs: Tensor, layer: int = 0) -> Outputs:
        self.count(name)
        tensors = self.weights.acquire(name, layer)
        with self.weights.scratch():
            outputs = self.runners[name](inputs, tensors)
        self.weights.release(name, layer)
        return self.weights.keep(outputs) if isinstance(outputs, Tensor) else tuple(map(self.weights.keep, outputs))

    def one(self, name: str, *inputs: Tensor, layer: int = 0) -> Tensor:
        """A graph with a single output."""
        output = self(name, *inputs, layer=layer)
        return output if isinstance(output, Tensor) else output[0]

    def many(self, name: str, *inputs: Tensor, layer: int = 0) -> tuple[Tensor, ...]:
        """A graph with several outputs."""
        output = self(name, *inputs, layer=layer)
        return (output,) if isinstance(output, Tensor) else tuple(output)

    @abstractmethod
    def text_layers(self, states: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Every (hidden [1, T, d_model], bias [1, H, T, T]) through all layers of the text encoder."""

    @abstractmethod
    def modulation(self, temb: Tensor) -> Tensor:
        """The adaptive norms of all blocks [N, layers, 2, 2, 3, C], from silu(temb) [N, D]."""

    @abstractmethod
    def face_keys_values(self, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values, E of each, from face tokens [1, N, kv_dim]."""

    @abstractmethod
    def trunk(
        self, tokens: list[Tensor], modulation: Tensor, cos: Tensor, sin: Tensor, keys: Sequence[Tensor],
        values: Sequence[Tensor], put: Callable[[Tensor], Tensor] = lambda hidden: hidden, begun: bool = False,
    ) -> Generator[None, None, Tensor]:  # fmt: skip
        """Video tokens [B, V, C] after all blocks, from one hidden state [B, S, C], which is taken out of `tokens`, and
        modulation [layers, 2, 2, 3, C]; it stops after every call, see graphs.trunk.blocks. `begun` is for a graph per
        layer only."""


class PerLayer(GraphExecutor):
    """A graph per kind of layer, called once per layer with other weights."""

    def text_layers(self, states: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        hidden = [state[0] for state in states]
        for layer in range(self.variant.text.num_layers):
            hidden = [self.one("text_layer", x, bias, layer=layer) for x, (_, bias) in zip(hidden, states, strict=True)]
        return hidden

    def modulation(self, temb: Tensor) -> Tensor:
        layers, table = self.variant.transformer.num_layers, torch.empty(0)
        for layer in range(layers):
            rows = self.one("modulation", temb, layer=layer)
            if layer == 0:
                table = rows.new_empty((len(rows), layers, *rows.shape[1:]))
            table[:, layer] = rows
        return table

    def face_keys_values(self, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        layers = range(self.variant.transformer.num_cross_attn)
        folded = [self.many("face_fold", tokens, layer=layer) for layer in layers]
        return [key for key, _ in folded], [value for _, value in folded]

    def trunk(
        self, tokens: list[Tensor], modulation: Tensor, cos: Tensor, sin: Tensor, keys: Sequence[Tensor],
        values: Sequence[Tensor], put: Callable[[Tensor], Tensor] = lambda hidden: hidden, begun: bool = False,
    ) -> Generator[None, None, Tensor]:  # fmt: skip
        return blocks(self.one, self.variant.transformer, tokens, modulation, cos, sin, keys, values, put, begun)


class PerGroup(GraphExecutor):
    """A graph per group of layers, which holds its weights.

    Attributes:
        layers_per_group: of all groups but the last.
    """

    layers_per_group = 1

    def text_layers(self, states: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        hidden = [state[0] for state in states]
        for i in range(len(spread(self.variant.text.num_layers, self.layers_per_group))):
            hidden = [self.one(f"{TEXT}_{i}", x, bias) for x, (_, bias) in zip(hidden, states, strict=True)]
        return hidden

    def modulation(self, temb: Tensor) -> Tensor:
        return self.one("modulations", temb)

    def face_keys_values(self, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        folded = self.many("face_folds", tokens)
        return list(folded[::2]), list(folded[1::2])

    def trunk(
        self, tokens: list[Tensor], modulation: Tensor, cos: Tensor, sin: Tensor, keys: Sequence[Tensor],
        values: Sequence[Tensor], put: Callable[[Tensor], Tensor] = lambda hidden: hidden, begun: bool = False,
    ) -> Generator[None, None, Tensor]:  # fmt: skip
        config, hidden = self.variant.transformer, tokens.pop()
        for i, layers in enumerate(spread(config.num_layers, self.layers_per_group)):
            given = [x for face in faces_of(config, layers) for x in (keys[face], values[face])]
            rows = modulation[layers.start : layers.stop]
            hidden = put(self.one(f"{TRUNK}_{i}", hidden, rows, cos, sin, *given))
            yield
        return hidden


def executor(
    variant: Variant, runners: Mapping[str, Runner], weights: Weights, device: torch.device, dtype: torch.dtype,
    layers_per_group: int = 0,
) -> GraphExecutor:  # fmt: skip
    """The executor of an engine's graphs; layers_per_group 0 stands for a graph per kind of layer."""
    if not layers_per_group:
        return PerLayer(variant, runners, weights, device, dtype)
    found = PerGroup(variant, runners, weights, device, dtype)
    found.layers_per_group = layers_per_group
    return found
