"""What a plan of the memory is made from, where several devices share a video: of the first, which holds most."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any, cast

import torch

from ..backends import Runner
from ..graphs.graph import Graph, in_ff_chunks
from ..graphs.spread import spread_table
from ..graphs.table import graph_table
from ..graphs.trunk import join_tokens
from ..memory.allocator import Event, arena_bytes, peak_bytes
from ..memory.costs import ROWS, Costs, StageCosts
from ..memory.tracing import Fake, Live, without_data
from ..runtime.executor import Held, PerLayer
from ..shapes import VideoShape, chunks
from ..variants import Variant
from ..video import to_uint8
from .crew import Crew
from .decode import SlabDecoder, slabs_of
from .exchange import Exchange, Parcel
from .mesh import Mesh
from .team import Team
from .trunk import SpreadTrunk


class Silent(Exchange):
    """Nothing is sent."""

    @contextmanager
    def swapping(
        self, what: str, gives: Sequence[Parcel] = (), takes: Sequence[Parcel] = (), beside: bool = False
    ) -> Iterator[None]:
        self.sent[what] += sum(tensor.nbytes for tensor, _ in gives)
        yield


class Alone(Team):
    """The first device without the others."""

    def order(self, what: str, **values: Any) -> None:
        """Nobody hears it."""

    @contextmanager
    def together(self) -> Iterator[None]:
        yield


def spread(
    costs: Costs, variant: Variant, shape: VideoShape, dtype: torch.dtype, mesh: Mesh, *, batch: int, guided: bool,
    fused: bool, rows: bool, holders: int = 1, beside: int = 1, memory: bool = True,
) -> Costs:  # fmt: skip
    """Costs of a video on one device, for several: what the first of them holds, and what passes between them.

    Args:
        fused: memory is that of our kernels and of a GPU.
        rows: the feed-forward can be cut.
        holders: devices of which each may keep a part of what streams.
        beside: runs of which each goes through the weights by itself.
        memory: False leaves what is held as it is on one device, where only seconds are asked for.
    """
    room, halves = arena_bytes if fused else peak_bytes, 2 if guided else 1
    at_once = mesh.cfg if (halves * batch) % mesh.cfg == 0 else 1
    samples = {"batched": halves * batch, "sequential": batch}

    def loop(stage: StageCosts) -> StageCosts:
        counted = partial(count_spread_step, variant, shape, dtype, mesh, batch, fused=fused)
        share = mesh.sequence * at_once * beside
        units = tuple(replace(unit, flops=unit.flops / share) for unit in stage.units)
        stage = replace(
            stage, units=units, sent=_sent(variant, shape, mesh, dtype.itemsize), holders=holders,
            flops=stage.flops / beside, passes=stage.passes * beside, together=stage.together * beside,
        )  # fmt: skip
        if not memory:
            return stage
        working = tuple((mode, room(counted(samples[mode]))) for mode, _ in stage.working)
        cut = tuple((mode, room(counted(samples[mode], rows=ROWS))) for mode, _ in stage.rows) if rows else ()
        return replace(stage, working=working, rows=cut)

    def decode(stage: StageCosts) -> StageCosts:
        latent = shape.latent_height, shape.latent_width
        share = max(end - begin for begin, end in slabs_of(latent, mesh.size)) / latent[0]
        stage = replace(stage, flops=stage.flops * share)
        if not memory:
            return stage
        return replace(
            stage, working=((stage.working[0][0], room(count_slab(variant, shape, dtype, mesh.size, fused=fused))),)
        )

    made = {"denoise": loop, "decode": decode}
    stages = tuple(made[stage.name](stage) if stage.name in made else stage for stage in costs.stages)
    return replace(costs, stages=stages, label=f"{costs.label}, on {mesh.size} devices ({mesh})")


def _sent(variant: Variant, shape: VideoShape, mesh: Mesh, width: int) -> int:
    """Bytes that the first device sends in a prediction of one sample, all blocks; it sends most."""
    t, shares = variant.transformer, mesh.shares(variant, shape)
    block = mesh.block_bytes(0, shares, 1, t.num_attention_heads, t.attention_head_dim, width)
    return t.num_layers * block + mesh.given_bytes(shares, 1, t.num_layers, t.inner_dim, width)


@lru_cache(maxsize=64)
def count_spread_step(
    variant: Variant, shape: VideoShape, dtype: torch.dtype, mesh: Mesh, batch: int, samples: int, rows: int = 1,
    fused: bool = False,
) -> tuple[Event, ...]:  # fmt: skip
    """As memory.tracing.count_step, on the first of several devices: by the code that runs there, on tensors without
    data and with nobody at the other end."""
    t = variant.transformer
    layers = min(t.num_layers, 2 * t.cross_attn_interval + t.num_layers % t.cross_attn_interval)
    few = replace(variant, transformer=replace(t, num_layers=layers))
    table = graph_table(few, shape)
    cut = {name: in_ff_chunks(graph, rows) if rows > 1 and graph.chunked else graph for name, graph in table.items()}
    local = spread_table(few, shape, mesh.sequence) if mesh.sequence > 1 else {}
    with without_data(fused):
        graphs = {name: graph for name, graph in cut.items() if graph.stage == "denoise"}
        call = Fake(graphs | local, dtype)
        networks = _networks(few, graphs, call, dtype)
        exchange = Silent(0, mesh.size, torch.device("meta"), timedelta())
        trunk = SpreadTrunk(networks, shape, exchange, mesh, rows, partial(_load, call))
        team = Alone(exchange, mesh, cast(Crew, None))
        latents, image = call.inputs(table["embed"], {"B": batch})
        hidden, modulation, cos, sin = call.inputs(table["block"], {"B": samples})
        text = hidden[:, : t.max_text_seq_length]
        _, head = call.inputs(table["head"], {"B": samples})
        like = next((table[name] for name in ("face", "last_face") if name in table), None)
        face = call.inputs(like, {"B": samples})[1:] if like is not None else []
        keys, values = ([x] * few.transformer.num_cross_attn for x in face) if face else ([], [])
        live = Live([*call.known, latents, image, hidden, modulation, cos, sin, head, *face])
        with live:
            tokens = [join_tokens(text, call("embed", latents, image))]
            rows_of = modulation.expand(layers, *modulation.shape)
            video = team.trunk(trunk, tokens, rows_of, cos, sin, keys, values, False, 1)
            noise = call("head", video, head)
        del noise, video
        return tuple(live.events)


@lru_cache(maxsize=16)
def count_slab(
    variant: Variant, shape: VideoShape, dtype: torch.dtype, devices: int, fused: bool = False
) -> tuple[Event, ...]:  # fmt: skip
    """What decoding the first device's rows of two chunks asks of the memory; what follows asks for the same."""
    table = {name: graph for name, graph in graph_table(variant, shape).items() if name == "decode_first"}
    channels, size = variant.vae.latent_channels, (shape.latent_height, shape.latent_width)
    count = len(chunks(shape.latent_frames))
    with without_data(fused):
        call = Fake(table, dtype)
        run = SlabDecoder(
            _networks(variant, table, call, dtype, bound=True),
            Silent(0, devices, torch.device("meta"), timedelta()), size, None,
        )  # fmt: skip
        parts = [torch.empty(1, channels, frames, *size, dtype=dtype) for frames in (chunks(shape.latent_frames)[0], 2)]
        live = Live([*call.known, *parts])
        with live:
            for index in range(min(count, 3)):
                frames = run.decode(parts[min(index, 1)], index == count - 1, to_uint8)
                del frames
        return tuple(live.events)


def _networks(
    variant: Variant, graphs: Mapping[str, Graph], call: Fake, dtype: torch.dtype, bound: bool = False
) -> PerLayer:  # fmt: skip
    """An executor over graphs without data; `bound`: it gives their weights to whatever stands in for them."""
    weights = call.weights if bound else dict.fromkeys(graphs, ())
    held = Held({name: [tuple(weights[name])] * len(graph.layers) for name, graph in graphs.items()})
    runners = {name: _load(call, graph, name) for name, graph in graphs.items()}
    return PerLayer(variant, runners, held, torch.device("meta"), dtype)


def _load(call: Fake, graph: Graph, like: str, rows: int = 1) -> Runner:
    several: Callable[..., Any] = call.many
    return lambda inputs, weights: several(graph.name, *inputs)
