"""Per-head LayerNorm of queries and keys, then rotary embedding of the video tokens (Su et al., arXiv:2104.09864).

The kernel reads q and k where the fused projection left them and writes each once, so nothing is split, normalised,
rotated or concatenated in memory on the way. It holds a row in float32 from the load to the store; the reference
rounds to the dtype of its input after the LayerNorm. Bound by memory: 11 FLOP for every element read and written.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import wrap_triton

from ._triton import padded, tl, triton
from .cost import Cost

# 32 rows of 64 bf16 are 4 KB: two 16-byte loads for each thread of 4 warps.
BLOCK_ROWS = 32


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[2i], x[2i+1]) of [B, V, H, D] by the angles with cos and sin [V, D/2], in their dtype."""
    even, odd = x.to(torch.promote_types(x.dtype, cos.dtype)).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)


def reference(
    qkv: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor,
    cos: Tensor, sin: Tensor, heads: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k, _ = qkv.unflatten(-1, (3, heads, -1)).unbind(2)  # [B, S, H, D] each
    text = q.shape[1] - cos.shape[0]
    results = []
    for x, weight, bias in ((q, q_weight, q_bias), (k, k_weight, k_bias)):
        x = F.layer_norm(x, weight.shape, weight, bias, eps)
        results.append(torch.cat((x[:, :text], rotate(x[:, text:], cos, sin)), dim=1))
    return results[0], results[1]


@triton.jit
def qk_norm_rope_kernel(  # type: ignore[no-untyped-def]
    qkv, q_out, k_out, q_weight, q_bias, k_weight, k_bias, cos, sin, length, text,
    EPS: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_R rows of q (second grid index 0) or of k (1) of a sample; a row is one head of one token.

    HEADS is a constant, and rows are counted in 32 bits within a sample: a division by a variable, above all in 64
    bits, would cost more instructions than there is time for while the row is on its way from memory.
    """
    which, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    rows = length * HEADS
    token, head = row // HEADS, row % HEADS
    column = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (column < D)[None, :]
    source = (sample * length + token) * (3 * HEADS * D) + (which * HEADS + head) * D
    x = tl.load(qkv + source[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)

    if which == 0:
        weight = tl.load(q_weight + column, mask=column < D, other=0.0).to(tl.float32)
        bias = tl.load(q_bias + column, mask=column < D, other=0.0).to(tl.float32)
    else:
        weight = tl.load(k_weight + column, mask=column < D, other=0.0).to(tl.float32)
        bias = tl.load(k_bias + column, mask=column < D, other=0.0).to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x, axis=1)[:, None] / D, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / D
    x = centred * tl.rsqrt(variance + EPS) * weight[None, :] + bias[None, :]

    # The pair (2i, 2i + 1) turns by the angle i; text rows turn by nothing: cos 1, sin 0.
    position = token - text
    half = tl.arange(0, BLOCK_D // 2)
    turned = ((row < rows) & (position >= 0))[:, None] & (half < D // 2)[None, :]
    angle = position[:, None] * (D // 2) + half[None, :]
    c = tl.load(cos + angle, mask=turned, other=1.0)
    s = tl.load(sin + angle, mask=turned, other=0.0)
    even, odd = tl.split(tl.reshape(x, (BLOCK_R, BLOCK_D // 2, 2)))
    x = tl.reshape(tl.join(even * c - odd * s, odd * c + even * s), (BLOCK_R, BLOCK_D))

    target = (sample * rows + row)[:, None] * D + column[None, :]
    if which == 0:
        tl.store(q_out + target, x, mask=inside)
    else:
        tl.store(k_out + target, x, mask=inside)


def fake(
    qkv: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor,
    cos: Tensor, sin: Tensor, heads: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, length, width = qkv.shape
    shape = (batch, length, heads, width // (3 * heads))
    return qkv.new_empty(shape), qkv.new_empty(shape)


def launch(
    qkv: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor,
    cos: Tensor, sin: Tensor, heads: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator consisid::qk_norm_rope."""
    qkv = qkv.contiguous()
    q, k = fake(qkv, q_weight, q_bias, k_weight, k_bias, cos, sin, heads, eps)
    batch, length, _, dim = q.shape
    wrap_triton(qk_norm_rope_kernel)[(triton.cdiv(length * heads, BLOCK_ROWS), 2, batch)](
        qkv, q, k, q_weight, q_bias, k_weight, k_bias, cos.contiguous(), sin.contiguous(),
        length, length - cos.shape[0],
        EPS=eps, HEADS=heads, D=dim, BLOCK_D=padded(dim), BLOCK_R=BLOCK_ROWS, num_warps=4,
    )  # fmt: skip
    return q, k


def cost(batch: int, length: int, heads: int, dim: int, size: int) -> Cost:
    """q and k are read and written once, at `size` bytes an element; the tables of angles stay in the cache."""
    elements = 2 * batch * length * heads * dim
    return Cost(flops=elements * (8 + 3), bytes=2 * elements * size + length * dim * 4)
