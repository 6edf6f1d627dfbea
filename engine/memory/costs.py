"""How large everything is that a plan of the memory places: weights per call, and what every stage works with.

Bytes throughout; FLOP count a multiply and an add as two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import torch

from ..errors import InputError, shown
from ..graphs.graph import STAGES, Graph
from ..graphs.table import graph_table
from ..shapes import VideoShape, chunks, whole
from ..shortcuts import Loop
from ..variants import Variant
from .allocator import GRANULE, Event, aligned, arena_bytes, peak_bytes, reserved_bytes
from .tracing import Count, count, count_decode, count_flops, count_step

PHOTO = 1024  # pixels: the largest side that photo.py leaves
SPLITS = (2, 3, 4, 6)  # tiles of the decoder per side
OVERLAP = 0.25  # of a tile's side, shared with its neighbour
SMALLEST_TILE = 8  # latent pixels

ROWS = 4  # pieces of the feed-forward: with them attention is what holds most, and smaller ones would save nothing

Key = tuple[str, int]
"""A graph and a layer: the weights of one call."""


@dataclass(frozen=True)
class Unit:
    """The weights of one call, in one piece of memory, and the arithmetic that is done with them per sample."""

    key: Key
    bytes: int
    flops: float


@dataclass(frozen=True)
class StageCosts:
    """One stage.

    Attributes:
        fixed: bytes of weights that stay for the whole stage, in one piece; what graphs share counts once.
        units: what may stream, in the order of execution.
        flops: of all other calls, per pass.
        passes: how often the units are gone through with one sample per guidance half at a time.
        together: how often with both halves at once, where there are modes.
        working: by CFG mode, the bytes in which calls find room for all that they make; one entry where there is no
            choice.
        rows: `working` with the feed-forward in ROWS pieces; empty where it cannot be cut.
        tiles: of the decoder, what frames can be cut into.
        data: bytes that other stages made and that live on.
        sent: bytes that the busiest of several devices sends or receives in a pass with one sample.
        holders: devices of which each may keep a part of what streams.
    """

    name: str
    fixed: int
    units: tuple[Unit, ...]
    flops: float
    passes: int
    together: int
    working: tuple[tuple[str, int], ...]
    data: int
    rows: tuple[tuple[str, int], ...] = ()
    tiles: tuple["TileCosts", ...] = ()
    sent: int = 0
    holders: int = 1


@dataclass(frozen=True)
class TileCosts:
    """A way to cut frames. tile: height and width in latent pixels; working: bytes in which decoding one finds room;
    arithmetic: that of all tiles against that of whole frames."""

    tile: tuple[int, int]
    working: int
    arithmetic: float


@dataclass(frozen=True)
class Costs:
    """All stages of one kind of video.

    Attributes:
        label: what it is the size of, for people.
        context: bytes that a process takes of the device before it allocates anything (see CONTEXT).
        pieces: bytes that PyTorch reserves besides what is counted one by one (see PIECES).
        weights: bytes of all weights, a piece of memory for each graph.
        granule: memory for weights is reserved in multiples of it.
    """

    label: str
    stages: tuple[StageCosts, ...]
    context: int
    pieces: int
    weights: int
    granule: int

    @property
    def overhead(self) -> int:
        """What every stage needs whatever it does."""
        return self.context + self.pieces


# The CUDA context and the code of libraries, which PyTorch's allocator does not see: 0.75 to 0.78 GiB on an H200, with
# what the driver keeps of the GPU (bench/reports/h200.md). A process without CUDA has none of it.
CONTEXT: Mapping[str, int] = {"cuda": 800 * 2**20, "cpu": 0}
# What PyTorch reserves for cuBLAS to work in (32 MiB on Hopper, which both of its interfaces share), the small segments
# of scalars and norms, and what is left over in those of 20 MiB: with 20 MiB for these an H200 reserved 2 MiB more.
PIECES: Mapping[str, int] = {"cuda": (32 + 8 + 28) * 2**20, "cpu": 0}
RUN: Mapping[str, int] = {"cuda": 20 * 2**20}  # and for each further run at once: a segment that it leaves part of


@lru_cache(maxsize=64)
def video_costs(
    variant: Variant, shape: VideoShape, dtype: torch.dtype, *, batch: int = 1, steps: int = 50, guided: bool = True,
    device: str = "cpu", rows: bool = True, parts: frozenset[str] | None = None, loop: Loop | None = None,
    beside: int = 1,
) -> Costs:  # fmt: skip
    """Costs of a video; seconds of counting at the first call, no tensor with data is made.

    Args:
        dtype: of weights and activations.
        batch: videos at once.
        steps: of denoising.
        guided: with classifier-free guidance, whose two halves run at once or one after the other.
        device: its kind, "cuda" or "cpu".
        rows: whether the feed-forward of the blocks can go in pieces; not where engines hold their weights.
        parts: of a checkpoint, that there are; None for all.
        loop: what it computes and keeps where that is not everything in every step.
        beside: such runs, of people and schedules of their own, which go through the weights together.

    Raises:
        InputError: no shape, or no number of videos or steps.
    """
    if not isinstance(shape, VideoShape):
        raise InputError(f"shape={shown(shape)} is no VideoShape; make one with VideoShape.of.")
    for name, value in (("batch", batch), ("steps", steps), ("beside", beside)):
        if whole(name, value) < 1:
            raise InputError(f"{name}={shown(value)} has to be at least 1.")
    table = {name: graph for name, graph in graph_table(variant, shape).items() if parts is None or graph.part in parts}
    if loop is None:
        loop = Loop(steps, steps * (2 if guided else 1), keeps=False)
    data = _data(variant, shape, dtype.itemsize, batch, steps, guided, device == "cuda", loop, beside)
    present = {name: [graph for graph in table.values() if graph.stage == name] for name in STAGES}
    stages = [
        _stage(
            name, graphs, variant, dtype, shape, data[name], batch, steps, guided, rows, device == "cuda", loop, beside
        )
        for name, graphs in present.items() if graphs
    ]  # fmt: skip
    granule = GRANULE if device == "cuda" else 1
    weights = reserved_bytes([_fixed([graph], dtype.itemsize) for graph in table.values()], device == "cuda")
    label = f"{variant.name}, {shape}, {str(dtype).removeprefix('torch.')}, {steps} steps"
    label += f", {batch * beside} videos" if batch * beside > 1 else ""
    pieces = PIECES.get(device, 0) + (beside - 1) * RUN.get(device, 0)
    return Costs(label, tuple(stages), CONTEXT.get(device, 0), pieces, weights, granule)


def _sizes(graph: Graph, free: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Of the free sizes those that the graph has."""
    return tuple(
        (name, free[name])
        for name in sorted({n for spec in graph.inputs.values() for n in spec.shape if isinstance(n, str)})
    )


@lru_cache(maxsize=512)
def _counted(
    variant: Variant, shape: VideoShape, name: str, sizes: tuple[tuple[str, int], ...], dtype: torch.dtype, fused: bool
) -> Count:
    """What a graph asks for, kept: plans for other steps and for other numbers of videos share most of it."""
    return count(graph_table(variant, shape)[name], dict(sizes), dtype, fused)


@lru_cache(maxsize=512)
def _flops(
    variant: Variant, shape: VideoShape, name: str, sizes: tuple[tuple[str, int], ...], dtype: torch.dtype
) -> int:
    """Those of a graph, kept as well."""
    return count_flops(graph_table(variant, shape)[name], dict(sizes), dtype)


def packed_bytes(shapes: Mapping[str, torch.Size], itemsize: int) -> int:
    """Bytes of tensors in one piece of memory, when each starts at a multiple of allocator.BLOCK."""
    return sum(aligned(shape.numel() * itemsize) for shape in shapes.values())


def _fixed(graphs: list[Graph], itemsize: int) -> int:
    """Bytes of all layers of the graphs, tensors of the checkpoint that several read counted once."""
    found: dict[tuple[str, ...], int] = {}
    for graph in graphs:
        for name, shape in graph.weights.items():
            for layer in range(len(graph.layers)):
                found[graph.part, *graph.sources(name, layer)] = aligned(shape.numel() * itemsize)
    return sum(found.values())


def _stage(
    name: str, graphs: list[Graph], variant: Variant, dtype: torch.dtype, shape: VideoShape, data: int,
    batch: int, steps: int, guided: bool, rows: bool, fused: bool, loop: Loop, runs: int,
) -> StageCosts:  # fmt: skip
    room = arena_bytes if fused else peak_bytes
    halves = 2 if guided else 1
    if name == "text":
        batch *= runs  # encoded beside each other
    together = runs if name == "denoise" else 1
    modes = {"batched": halves * batch, "sequential": batch} if name == "denoise" and guided else {"batched": batch}
    beside = batch if name == "text" else 1  # prompts are encoded beside each other
    working, pieces, flops, cut = {}, {}, {}, tuple[TileCosts, ...]()
    for mode, samples in modes.items():
        # The projection of the text sees both halves, whatever the loop does.
        free = {"B": halves * batch if name == "prepare" else samples, "N": steps, "H": PHOTO, "W": PHOTO}
        sizes = {graph.name: _sizes(graph, free) for graph in graphs}
        flops = {graph.name: _flops(variant, shape, graph.name, sizes[graph.name], dtype) for graph in graphs}
        if name == "denoise":
            working[mode] = room(count_step(variant, shape, batch, samples, dtype, 1, fused, runs > 1))
            if rows:
                pieces[mode] = room(count_step(variant, shape, batch, samples, dtype, ROWS, fused, runs > 1))
        elif name == "decode":
            latent = shape.latent_height, shape.latent_width
            events = count_decode(variant, latent, shape.latent_frames, dtype, fused)
            working[mode] = room(events)
            frame = 3 * 9 * shape.height * shape.width * dtype.itemsize
            cut = tuple(_tiles(latent, events, 2 * frame, fused))
        else:
            counts = [_counted(variant, shape, graph.name, sizes[graph.name], dtype, fused) for graph in graphs]
            working[mode] = max(beside * room(each.events) + reserved_bytes([each.inputs], fused) for each in counts)
    calls = {graph.name: len(graph.layers) * beside for graph in graphs}  # of a pass; with a pass per half
    if name == "decode":
        calls = {"decode_first": batch, "decode_next": batch * (len(chunks(shape.latent_frames)) - 1)}
    streamed = [graph for graph in graphs if graph.streams]
    units = tuple(
        Unit(
            (graph.name, layer),
            packed_bytes(graph.weights, dtype.itemsize),
            beside * together * flops[graph.name],
        )
        for graph in streamed
        for layer in range(len(graph.layers))
    )
    rest = [graph for graph in graphs if not graph.streams]
    return StageCosts(
        name=name,
        fixed=_fixed(rest, dtype.itemsize),
        units=units,
        flops=sum(calls[graph.name] * flops[graph.name] for graph in rest) * (1 if name == "text" else runs),
        passes={"denoise": loop.halves, "text": halves}.get(name, 1),
        together={"denoise": loop.steps}.get(name, halves if name == "text" else 1),
        working=tuple(working.items()),
        rows=tuple(pieces.items()),
        data=data,
        tiles=cut,
    )


def _tiles(latent: tuple[int, int], events: Sequence[Event], frames: int, fused: bool) -> Iterator[TileCosts]:
    """Ways to cut a frame. What a decoder holds is in proportion to its pixels; `frames` bytes, in which tiles are
    blended, come on top."""
    for split in SPLITS:
        sides = [min(side, ceil(side / (split - (split - 1) * OVERLAP))) for side in latent]
        if min(sides) >= SMALLEST_TILE:
            share = sides[0] * sides[1] / (latent[0] * latent[1])
            scaled = [(request, ceil(count * share)) for request, count in events]
            working = (arena_bytes if fused else peak_bytes)(scaled) + frames
            yield TileCosts((sides[0], sides[1]), working, split**2 * share)


def _data(
    variant: Variant, shape: VideoShape, width: int, batch: int, steps: int, guided: bool, fused: bool, loop: Loop,
    runs: int,
) -> dict[str, int]:  # fmt: skip
    """Bytes of what stages hand on, by the stage in which they are alive: of all runs."""
    t, halves = variant.transformer, 2 if guided else 1
    dim, tokens = t.inner_dim, t.max_text_seq_length
    face = 2 * t.num_cross_attn * [t.cross_attn_num_heads * t.LFE_num_querie * dim * width]
    text = [halves * batch * tokens * t.text_embed_dim * width]
    rotary = 2 * [shape.video_tokens * t.attention_head_dim // 2 * 4]
    given = [halves * batch * tokens * dim * width, batch * shape.video_tokens * dim * width, *face, *rotary]
    pixels = shape.loop_frames * variant.vae.latent_channels * shape.latent_height * shape.latent_width
    latents = 8 * [batch * pixels * 4]  # noise, prediction and what a scheduler keeps of both, in float32
    kept = [halves * batch * shape.video_tokens * dim * width] if loop.keeps else []
    kept += [batch * shape.video_tokens * dim * width] if loop.looks else []
    table = [*kept, steps * t.num_layers * 12 * dim * width]
    before = [*text, *latents, *given]
    found = {
        "photo": [], "face": face, "image": [], "text": text, "prepare": before, "schedule": [*before, *table],
        "denoise": [*before, *table], "decode": latents,
    }  # fmt: skip
    # Where others are in their loops while one is in another stage, theirs is alive too, and hidden states are apart.
    apart = [halves * batch * (tokens + shape.video_tokens) * dim * width] if runs > 1 else []
    loops = (runs - 1) * [*found["denoise"], *apart]
    found["denoise"] = [*found["denoise"], *apart]
    return {stage: reserved_bytes([*loops, *tensors], fused) for stage, tensors in found.items()}
