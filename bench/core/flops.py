"""How much arithmetic and traffic a video takes, counted from its shapes: what turns a time into a rate.

A multiply and an add count as two. Exponentials, norms and other element-wise work are not in the count, so a rate
says how much of the matrix units was used, no more.
"""

from dataclasses import dataclass

import torch

from consisid.engine.graphs.table import graph_table
from consisid.engine.memory.tracing import count_flops
from consisid.engine.shapes import VideoShape, chunks
from consisid.engine.variants import Variant

STEP_GRAPHS = ("embed", "block", "last_block", "face", "last_face", "head")  # of the stage denoise


@dataclass(frozen=True)
class StepCost:
    """FLOPs of one sample and step by part of the transformer."""

    attention: float
    linears: float
    face: float

    @property
    def total(self) -> float:
        return self.attention + self.linears + self.face


def step_cost(variant: Variant, shape: VideoShape, *, folded: bool = True, whole: bool = False) -> StepCost:
    """The transformer's blocks for one sample.

    Args:
        folded: the face attention as this engine runs it (docs/decisions.md); otherwise as diffusers does, keys and
            values included.
        whole: count what the last block does for the text, which nothing reads and this engine leaves out.
    """
    t = variant.transformer
    dim, video = t.inner_dim, shape.video_tokens
    tokens = t.max_text_seq_length + video
    attention = t.num_layers * 4.0 * tokens**2 * dim
    linears = t.num_layers * 2.0 * tokens * 12 * dim**2  # qkv 3, out 1, feed-forward 4 + 4
    if not whole:
        attention -= 4.0 * t.max_text_seq_length * tokens * dim
        linears -= 2.0 * t.max_text_seq_length * 9 * dim**2  # queries stay in the fused product: out 1, feed-forward 8
    heads, inner = t.cross_attn_num_heads, t.cross_attn_num_heads * t.cross_attn_dim_head
    if folded:
        each = 4.0 * video * dim * heads * t.LFE_num_querie
    else:
        each = 4.0 * video * dim * inner + 4.0 * video * t.LFE_num_querie * inner
        each += 4.0 * t.LFE_num_querie * t.LFE_output_dim * inner
    return StepCost(attention, linears, t.num_cross_attn * each)


def graph_flops(variant: Variant, shape: VideoShape, name: str) -> float:
    """One call of a graph for one sample, operator by operator."""
    return count_flops(graph_table(variant, shape)[name], {"B": 1, "N": 1}, torch.float32)


def decode_flops(variant: Variant, shape: VideoShape) -> float:
    """The decoder over a whole video of one sample, chunk by chunk."""
    names = ["decode_first", *["decode_next"] * (len(chunks(shape.latent_frames)) - 1)]
    counted = {name: graph_flops(variant, shape, name) for name in set(names)}
    return sum(counted[name] for name in names)


def text_flops(variant: Variant, shape: VideoShape) -> float:
    """The text encoder over one prompt."""
    return variant.text.num_layers * graph_flops(variant, shape, "text_layer")


def weight_bytes(variant: Variant, shape: VideoShape, names: tuple[str, ...], element: int) -> float:
    """Bytes of the weights of some graphs, all their layers, at `element` bytes each: the least that running through
    them moves, whatever the batch."""
    found = [graph for name, graph in graph_table(variant, shape).items() if name in names]
    sizes = (len(g.layers) * sum(size.numel() for size in g.weights.values()) for g in found)
    return float(element * sum(sizes))
