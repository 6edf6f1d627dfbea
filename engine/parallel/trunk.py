"""The blocks of one device, on its share of the tokens."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..backends import Outputs, Runner, backend
from ..engine import Engine
from ..graphs.graph import Graph, in_ff_chunks
from ..graphs.spread import LOCAL, PARTS, spread_table
from ..graphs.trunk import blocks, in_turn
from ..runtime.executor import GraphExecutor
from ..shapes import VideoShape
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
    """

    def __init__(
        self, networks: GraphExecutor, shape: VideoShape, exchange: Exchange, mesh: Mesh, rows: int, load: Load
    ):
        self.networks, self.mesh = networks, mesh
        self.shares = mesh.shares(networks.variant, shape)
        _, mine, turn = mesh.coordinates(exchange.rank)
        self.share = self.shares[mesh.rank(0, mine, turn)]
        if mesh.sequence > 1:
            attention = SpreadAttention(exchange, mesh, self.shares)
            self.networks = networks.under(
                {**networks.runners, **self._runners(shape, attention, networks, rows, load)}
            )

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
        with self.networks.weights.together("denoise"):
            return self.networks.one("block", hidden, modulation, cos, sin)

    @torch.no_grad()
    def run(
        self, hidden: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor, keys: Sequence[Tensor],
        values: Sequence[Tensor], begun: bool = False,
    ) -> Tensor:  # fmt: skip
        """Video tokens [B, v, C] from the device's hidden state [B, s, C]; see graphs.trunk.blocks."""
        config = self.networks.variant.transformer
        if self.mesh.sequence > 1:
            work = blocks(self.networks.one, config, [hidden], modulation, cos, sin, keys, values, begun=begun)
        else:
            work = self.networks.trunk([hidden], modulation, cos, sin, keys, values, begun=begun)
        del hidden
        with self.networks.weights.together("denoise"):
            return in_turn([work])[0]

    def pass_by(self, first: bool = False, begun: bool = False) -> None:
        """`run`, or where `first` `block`, of a device that has nothing to compute: the others want its part of the
        weights."""
        config, weights = self.networks.variant.transformer, self.networks.weights

        def call(name: str, *inputs: Tensor, layer: int = 0) -> Tensor:
            weights.acquire(name, layer)
            weights.release(name, layer)
            return inputs[0]

        with weights.together("denoise"):
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
    entries = engine.manifest.graphs

    def load(graph: Graph, like: str, rows: int = 1) -> Runner:
        key = shape, graph.name, like, rows
        if key not in loaded:
            entry = entries.get(graph.name) if rows == 1 else None  # nothing is compiled in pieces
            module = backend(entry.backend if entry else "eager")
            file = engine.folder / entry.file if entry and entry.file else None
            loaded[key] = module.load(graph, file, engine.device, engine.weights.names(like))
        return loaded[key]

    return SpreadTrunk(networks, shape, exchange, mesh, rows, load)
