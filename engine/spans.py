"""Networks of many layers, run through whatever graphs an engine has: a graph per layer, or one per shard of layers.

The stages call these four functions and do not know which it is.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .shards import TEXT, TRUNK, faces_of, spread
from .steps import run_blocks

if TYPE_CHECKING:
    from .runtime import Networks


class Spans(Protocol):
    """Shapes: B samples, T text tokens, V video tokens, S = T + V, C channels, N steps, E face attentions."""

    def text(self, networks: "Networks", states: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Every (hidden [1, T, d_model], bias [1, H, T, T]) through all layers of the text encoder."""

    def modulation(self, networks: "Networks", temb: Tensor) -> Tensor:
        """The adaptive norms of all blocks [N, layers, 2, 2, 3, C], from silu(temb) [N, D]."""

    def faces(self, networks: "Networks", tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values, E of each, from face tokens [1, N, kv_dim]."""

    def trunk(
        self, networks: "Networks", tokens: list[Tensor], modulation: Tensor, cos: Tensor, sin: Tensor,
        keys: Sequence[Tensor], values: Sequence[Tensor],
    ) -> Tensor:  # fmt: skip
        """Video tokens [B, V, C] after all blocks, from one hidden state [B, S, C], which is taken out of `tokens`, and
        modulation [layers, 2, 2, 3, C]."""


class LayerByLayer:
    """A graph per kind of layer, called once per layer with other weights."""

    def text(self, networks: "Networks", states: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        hidden = [state[0] for state in states]
        for layer in range(networks.variant.text.num_layers):
            hidden = [
                networks.one("text_layer", x, bias, layer=layer) for x, (_, bias) in zip(hidden, states, strict=True)
            ]
        return hidden

    def modulation(self, networks: "Networks", temb: Tensor) -> Tensor:
        layers, table = networks.variant.transformer.num_layers, torch.empty(0)
        for layer in range(layers):
            rows = networks.one("modulation", temb, layer=layer)
            if layer == 0:
                table = rows.new_empty((len(rows), layers, *rows.shape[1:]))
            table[:, layer] = rows
        return table

    def faces(self, networks: "Networks", tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        layers = range(networks.variant.transformer.num_cross_attn)
        folded = [networks.many("face_fold", tokens, layer=layer) for layer in layers]
        return [key for key, _ in folded], [value for _, value in folded]

    def trunk(
        self, networks: "Networks", tokens: list[Tensor], modulation: Tensor, cos: Tensor, sin: Tensor,
        keys: Sequence[Tensor], values: Sequence[Tensor],
    ) -> Tensor:  # fmt: skip
        return run_blocks(
            networks.one, networks.variant.transformer, tokens, modulation, cos, sin, keys, values
        )  # fmt: skip


class Shards:
    """A graph per shard, which holds its weights.

    Args:
        count: layers in a shard.
    """

    def __init__(self, count: int):
        self.count = count

    def text(self, networks: "Networks", states: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        hidden = [state[0] for state in states]
        for i in range(len(spread(networks.variant.text.num_layers, self.count))):
            hidden = [networks.one(f"{TEXT}_{i}", x, bias) for x, (_, bias) in zip(hidden, states, strict=True)]
        return hidden

    def modulation(self, networks: "Networks", temb: Tensor) -> Tensor:
        return networks.one("modulations", temb)

    def faces(self, networks: "Networks", tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        folded = networks.many("face_folds", tokens)
        return list(folded[::2]), list(folded[1::2])

    def trunk(
        self, networks: "Networks", tokens: list[Tensor], modulation: Tensor, cos: Tensor, sin: Tensor,
        keys: Sequence[Tensor], values: Sequence[Tensor],
    ) -> Tensor:  # fmt: skip
        config, hidden = networks.variant.transformer, tokens.pop()
        for i, layers in enumerate(spread(config.num_layers, self.count)):
            given = [x for face in faces_of(config, layers) for x in (keys[face], values[face])]
            rows = modulation[layers.start : layers.stop]
            hidden = networks.one(f"{TRUNK}_{i}", hidden, rows, cos, sin, *given)
        return hidden
