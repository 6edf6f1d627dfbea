"""The blocks of one device, on its share of the tokens."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..backends import Outputs, Runner, backend
from ..engine import Engine
from ..graphs.graph import Graph, in_ff_chunks
from ..graphs.spread import BETWEEN, LOCAL, PARTS, spread_groups, spread_table
from ..graphs.trunk import blocks, in_turn
from ..runtime.executor import GraphExecutor
from ..shapes import VideoShape
from ..weights.baked import BakedWeights
from .attention import SpreadAttention
from .exchange import Exchange
from .mesh import Mesh, Share

Load = Callable[..., Runner]
"""load(graph, like, rows=1) -> its runner, with the weights that the graph called `like` takes."""


class SpreadTrunk:
    """The trunk between the devices of a sequence; where these are one, just the trunk.

    Args:
        networks: the graphs of this device.
        rows: pieces of the blocks' feed-forward.
        load: makes graphs callable that are not among them.
        holds: they hold their weights.
    """

    def __init__(
        self, networks: GraphExecutor, shape: VideoShape, exchange: Exchange, mesh: Mesh, rows: int, load: Load,
        holds: bool = False,
    ):  # fmt: skip
        self.networks, self.mesh, self.holds = networks, mesh, holds
        self.shares = mesh.shares(networks.variant, shape)
        _, mine, turn = mesh.coordinates(exchange.rank)
        self.share = self.shares[mesh.rank(0, mine, turn)]
        if mesh.sequence > 1:
            self.attention = SpreadAttention(exchange, mesh, self.shares)
            runners = (
                self._holders(shape, load) if holds else self._runners(shape, self.attention, networks, rows, load)
            )
            self.networks = networks.under({**networks.runners, **runners})

    def _holders(self, shape: VideoShape, load: Load) -> Mapping[str, Runner]:
        table = spread_groups(self.networks.variant, shape, self.mesh.sequence)
        return {name: load(graph, name) for name, graph in table.items()}

    def _runners(
        self, shape: VideoShape, attention: SpreadAttention, networks: GraphExecutor, rows: int, load: Load
    ) -> Mapping[str, Runner]:
        table = spread_table(networks.variant, shape, self.mesh.sequence)
        if rows > 1:
            table["spread_out"] = in_ff_chunks(table["spread_out"], rows)
        found = {}
        for name, (before, behind) in PARTS.items():
            text = self.share.size[0] if name == "last_block" else 0
            found[name] = partial(_spread, load(table[before], name), load(table[behind], name, rows), attention, text)
        return found | {name: load(table[graph], name) for name, graph in LOCAL.items() if graph in table}

    def positions(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Of the device's video tokens, of tables [V, D / 2] or [0, D / 2]."""
        begin, end = self.share.video
        short = self.share.size[1] - (end - begin)

        def part(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x[begin:end], (0, 0, 0, short)).contiguous() if len(x) else x

        return part(cos), part(sin)

    def real(self, own: Tensor, video: bool) -> list[Tensor]:
        """Of the device's rows [B, s, C], or of the video's alone, those of tokens: the text's, then the video's."""
        text, frames = self.share.places
        if video:
            return [own[:, : frames.stop - frames.start]]
        return [own[:, text], own[:, frames]]

    @torch.no_grad()
    def block(self, hidden: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The first block: the device's hidden state [B, s, C] -> the same."""
        with self.networks.weights.together("denoise", units=1):
            return self.networks.one("block", hidden, modulation, cos, sin)

    @torch.no_grad()
    def run(
        self, hidden: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor, keys: Sequence[Tensor],
        values: Sequence[Tensor], begun: bool = False,
    ) -> Tensor:  # fmt: skip
        """Video tokens [B, v, C] from the device's hidden state [B, s, C]; see graphs.trunk.blocks."""
        config = self.networks.variant.transformer
        if self.holds and self.mesh.sequence > 1:
            return self._between([hidden], modulation, (cos, sin), list(zip(keys, values, strict=True)))
        if self.mesh.sequence > 1:
            work = blocks(self.networks.one, config, [hidden], modulation, cos, sin, keys, values, begun=begun)
        else:
            work = self.networks.trunk([hidden], modulation, cos, sin, keys, values, begun=begun)
        del hidden
        with self.networks.weights.together("denoise"):
            return in_turn([work])[0]

    def _between(
        self, tokens: list[Tensor], modulation: Tensor, angles: tuple[Tensor, Tensor],
        faces: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:  # fmt: skip
        """`run` by graphs that hold their weights: hidden states and attention take turns."""
        config, hidden = self.networks.variant.transformer, tokens.pop()
        heads: Sequence[Tensor] = self.networks.many(f"{BETWEEN}_0", hidden, modulation[:1], *angles)
        for layer in range(1, config.num_layers + 1):
            attended, face = self.attention(*heads), config.face_index(layer - 1)
            inputs = [hidden, attended, modulation[layer - 1 : layer + 1]]
            inputs += angles if layer < config.num_layers else ()
            inputs += faces[face] if face is not None else ()
            del hidden, attended, heads
            hidden, *heads = self.networks.many(f"{BETWEEN}_{layer}", *inputs)  # noqa: RUF059  # the next turn reads them
            del inputs
        return hidden

    def pass_by(self, first: bool = False, begun: bool = False) -> None:
        """`run`, or where `first` `block`, of a device that has nothing to compute: the others want its part of the
        weights."""
        config, weights = self.networks.variant.transformer, self.networks.weights

        def call(name: str, *inputs: Tensor, layer: int = 0) -> Tensor:
            weights.acquire(name, layer)
            weights.release(name, layer)
            return inputs[0]

        with weights.together("denoise", units=1 if first else None):
            nothing, rows = torch.empty(0), torch.empty(config.num_layers)
            faces = [nothing] * config.num_cross_attn
            if first:
                call("block", nothing)
            else:
                in_turn([blocks(call, config, [nothing], rows, nothing, nothing, faces, faces, begun=begun)])


def _spread(
    before: Runner, behind: Runner, attention: SpreadAttention, text: int, inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> Outputs:  # fmt: skip
    """A block as a runner; of the last one only the video tokens are wanted."""
    hidden, modulation = inputs[:2]
    q, k, v = before(inputs, weights)
    attended = attention(q, k, v)
    del q, k, v
    found = behind((hidden, attended, modulation), weights)
    assert isinstance(found, Tensor)
    return found[:, text:].contiguous() if text else found


def take(hidden: Tensor, share: Share) -> Tensor:
    """A device's rows [B, s, C] of a hidden state [B, T + V, C]."""
    found = hidden.new_zeros((len(hidden), share.rows, hidden.shape[2]))
    for place, (begin, end) in zip(share.places, share.spans, strict=True):
        found[:, place] = hidden[:, begin:end]
    return found


def trunk_of(
    engine: Engine, networks: GraphExecutor, shape: VideoShape, exchange: Exchange, mesh: Mesh, rows: int,
    loaded: dict[Hashable, Runner],
) -> SpreadTrunk:  # fmt: skip
    """The trunk of a device, with the graphs of its engine, which has the blocks of a single one in `rows` pieces.

    Args:
        loaded: graphs that have been loaded before, by whoever calls this.
    """
    entries, holds = engine.manifest.graphs, bool(engine.manifest.spec.layers_per_shard)

    def load(graph: Graph, like: str, rows: int = 1) -> Runner:
        key = shape, graph.name, like, rows
        if key not in loaded:
            entry = entries.get(graph.name) if rows == 1 else None  # nothing is compiled in pieces
            module = backend(entry.backend if entry else "eager")
            file = engine.folder / entry.file if entry and entry.file else None
            if holds and entry:
                engine.weights.bind(graph, entry.weights)
            loaded[key] = module.load(graph, file, engine.device, engine.weights.names(like))
            if isinstance(engine.weights, BakedWeights):
                engine.weights.hold(graph.name, loaded[key])
        return loaded[key]

    return SpreadTrunk(networks, shape, exchange, mesh, rows, load, holds)
