"""How large everything is that a plan of the memory places: weights per call, and what every stage works with.

Bytes throughout; FLOP count a multiply and an add as two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from .chunks import chunks
from .graphs import IN_ROWS, Graph, graph_table, in_rows, weight_shapes
from .shapes import VideoShape
from .variants import Variant

PHOTO = 1024  # pixels: the largest side that photo.py leaves
ALIGN = 512  # bytes: what PyTorch's allocator rounds to, and more than any kernel asks of an address

# In the order of a video. A call of a graph of another stage ends the one before.
STAGES: Mapping[str, tuple[str, ...]] = {
    "photo": ("retinaface", "bisenet", "eva"),
    "face": ("face_extract", "face_fold"),
    "image": ("vae_encode",),
    "text": ("text_embed", "text_layer", "text_norm"),
    "prepare": ("text_project", "image_embed"),
    "schedule": ("time_embed", "modulation", "out_modulation"),
    "denoise": ("embed", "block", "last_block", "face", "last_face", "head"),
    "decode": ("decode_first", "decode_next"),
}
STREAMABLE = ("face_fold", "text_layer", "modulation", "block", "last_block")  # one layer after the other, each large
STAGE_OF: Mapping[str, str] = {graph: stage for stage, graphs in STAGES.items() for graph in graphs}
ROWS = 4  # pieces of the feed-forward: with them attention is what holds most, and smaller ones would save nothing
KEPT_PROMPTS = 16  # text.TextEncoder.KEPT

Key = tuple[str, int]
"""A graph and a layer: the weights of one call."""


@dataclass(frozen=True)
class Unit:
    """The weights of one call, in one piece of memory, and the arithmetic that is done with them per sample."""

    key: Key
    bytes: int
    flops: float


@dataclass(frozen=True)
class StageSizes:
    """One stage.

    Attributes:
        fixed: bytes of weights that stay for the whole stage; what graphs share counts once.
        units: what may stream, in the order of execution.
        flops: of all other calls, per pass.
        passes: how often the units are gone through with one sample per guidance half at a time.
        working: by CFG mode, the most bytes that calls hold beside weights; one entry where there is no choice.
        rows: `working` with the feed-forward in ROWS pieces; empty where it cannot be cut.
        data: bytes that other stages made and that live on.
        frames: bytes of a decoded chunk, which tiles are put together in; only of the decoder.
    """

    name: str
    fixed: int
    units: tuple[Unit, ...]
    flops: float
    passes: int
    working: tuple[tuple[str, int], ...]
    data: int
    frames: int = 0
    rows: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Sizes:
    """All stages of one kind of video.

    Attributes:
        label: what it is the size of, for people.
        overhead: bytes that are gone before anything is loaded (see OVERHEAD).
        latent: height and width of the latents, which tiles divide.
        weights: bytes of all weights, each once.
    """

    label: str
    stages: tuple[StageSizes, ...]
    overhead: int
    latent: tuple[int, int]
    weights: int


# The CUDA context, libraries' workspaces and what the allocator loses between blocks: an assumption until it is
# measured on a GPU. A process without CUDA has none of it.
OVERHEAD: Mapping[str, int] = {"cuda": 640 * 2**20, "cpu": 0}


def aligned(count: int) -> int:
    """Bytes rounded up to ALIGN."""
    return -(-count // ALIGN) * ALIGN


@lru_cache(maxsize=64)
def sizes(
    variant: Variant,
    shape: VideoShape,
    dtype: torch.dtype,
    *,
    batch: int = 1,
    steps: int = 50,
    guided: bool = True,
    device: str = "cpu",
    rows: bool = True,
) -> Sizes:
    """Sizes of a video; seconds of counting at the first call, no tensor with data is made.

    Args:
        dtype: of weights and activations.
        batch: videos at once.
        steps: of denoising.
        guided: with classifier-free guidance, whose two halves run at once or one after the other.
        device: its kind, "cuda" or "cpu".
        rows: whether the feed-forward of the blocks can go in pieces; not where engines hold their weights.
    """
    table = graph_table(variant, shape)
    data = _data(variant, shape, dtype.itemsize, batch, steps, guided)
    stages = []
    for name, graphs in STAGES.items():
        present = [table[graph] for graph in graphs if graph in table]
        if present:
            stages.append(_stage(name, present, dtype, shape, data[name], batch, steps, guided, rows, device == "cuda"))
    weights = _fixed(list(table.values()), dtype.itemsize)
    label = f"{variant.name}, {shape}, {str(dtype).removeprefix('torch.')}, {steps} steps"
    label += f", {batch} videos" if batch > 1 else ""
    latent = (shape.latent_height, shape.latent_width)
    return Sizes(label, tuple(stages), OVERHEAD.get(device, 0), latent, weights)


def packed_bytes(shapes: Mapping[str, torch.Size], itemsize: int) -> int:
    """Bytes of tensors in one piece of memory, when each starts at a multiple of ALIGN."""
    return sum(aligned(shape.numel() * itemsize) for shape in shapes.values())


def _fixed(graphs: list[Graph], itemsize: int) -> int:
    """Bytes of all layers of the graphs, tensors of the checkpoint that several read counted once."""
    found: dict[tuple[str, ...], int] = {}
    for graph in graphs:
        for name, shape in weight_shapes(graph.module()).items():
            for layer in range(len(graph.layers)):
                found[graph.part, *graph.sources(name, layer)] = aligned(shape.numel() * itemsize)
    return sum(found.values())


def _stage(
    name: str, graphs: list[Graph], dtype: torch.dtype, shape: VideoShape, data: int,
    batch: int, steps: int, guided: bool, rows: bool, fused: bool,
) -> StageSizes:  # fmt: skip
    from .counting import count  # PyTorch's fake tensors take a while to import

    halves = 2 if guided else 1
    modes = {"batched": halves * batch, "sequential": batch} if name == "denoise" and guided else {"batched": batch}
    beside = batch if name == "text" else 1  # prompts are encoded beside each other
    working, pieces, counts = {}, {}, {}
    for mode, samples in modes.items():
        # The projection of the text sees both halves, whatever the loop does.
        free = {"B": halves * batch if name == "prepare" else samples, "N": steps, "H": PHOTO, "W": PHOTO}
        counts = {graph.name: count(graph, free, dtype, fused) for graph in graphs}
        working[mode] = beside * max(counted.working for counted in counts.values())
        if rows and name == "denoise":
            cut = [count(in_rows(graph, ROWS), free, dtype, fused) if graph.name in IN_ROWS else counts[graph.name]
                   for graph in graphs]  # fmt: skip
            pieces[mode] = max(counted.working for counted in cut)
    calls = {graph.name: len(graph.layers) * beside for graph in graphs}  # of a pass; with a pass per half
    if name == "decode":
        calls = {"decode_first": batch, "decode_next": batch * (len(chunks(shape.latent_frames)) - 1)}
    streamed = [graph for graph in graphs if graph.name in STREAMABLE]
    units = tuple(
        Unit(
            (graph.name, layer),
            packed_bytes(weight_shapes(graph.module()), dtype.itemsize),
            beside * counts[graph.name].flops,
        )
        for graph in streamed
        for layer in range(len(graph.layers))
    )
    rest = [graph for graph in graphs if graph.name not in STREAMABLE]
    return StageSizes(
        name=name,
        fixed=_fixed(rest, dtype.itemsize),
        units=units,
        flops=sum(calls[graph.name] * counts[graph.name].flops for graph in rest),
        passes={"denoise": steps * halves, "text": halves}.get(name, 1),
        working=tuple(working.items()),
        rows=tuple(pieces.items()),
        data=data,
        frames=3 * 9 * shape.height * shape.width * dtype.itemsize if name == "decode" else 0,
    )


def _data(variant: Variant, shape: VideoShape, width: int, batch: int, steps: int, guided: bool) -> dict[str, int]:
    """Bytes of what stages hand on, by the stage in which they are alive."""
    t, halves = variant.transformer, 2 if guided else 1
    dim, tokens = t.inner_dim, t.max_text_seq_length
    face = 2 * t.num_cross_attn * t.cross_attn_num_heads * t.LFE_num_querie * dim * width
    text = (KEPT_PROMPTS + halves * batch) * tokens * t.text_embed_dim * width
    rotary = 2 * shape.video_tokens * t.attention_head_dim // 2 * 4
    image = batch * shape.video_tokens * dim * width
    given = halves * batch * tokens * dim * width + image
    pixels = shape.latent_frames * variant.vae.latent_channels * shape.latent_height * shape.latent_width
    latents = 8 * batch * pixels * 4  # noise, prediction and what a scheduler keeps of both, in float32
    table = steps * t.num_layers * 12 * dim * width
    before = face + text + rotary
    return {
        "photo": 0, "face": text + rotary, "image": before, "text": before, "prepare": before + latents,
        "schedule": before + given + latents + 2 * table,  # the rows, and the stack of them
        "denoise": before + given + latents + table,
        "decode": before + given + latents,
    }  # fmt: skip
