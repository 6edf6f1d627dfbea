"""Attention of the video tokens to the identity tokens of a face, with everything that depends only on the identity
folded into two matrices.

The reference (diffusers PerceiverCrossAttention) computes, for normalised rows x and identity tokens f,
softmax(x Wq (f Wk)^T s) (f Wv) Wo. Matrix products are associative, so per head K = s Wq (f Wk)^T and V = (f Wv) Wo
are computed once per identity (export: FaceFold) and the loop multiplies by [C, H * N] and [H * N, C] instead of
[C, H * D] and [H * D, C]: with N = 32 tokens and D = 128 that is a quarter of the arithmetic, and Wq, Wo never have
to be on the device during the loop.

At full size (17,550 video rows, C = 3072, H * N = 512, bfloat16) the two products are 110 GFLOP a sample against 216 MB
of hidden states in and as many out: 510 FLOP a byte, more than the 165 to 300 at which a data-centre GPU changes from
memory to arithmetic. So the products have to run near the speed of a plain matrix product and everything else has to
stay out of memory. One kernel for all would have to keep a [rows, C] accumulator, too large for a multiprocessor at
C = 3072. Here:
  1. the weight and bias of the LayerNorm go into the keys (512 rows), so hidden states need not be normalised first;
  2. one pass over the hidden states for mean and deviation of each row;
  3. hidden @ folded keys, with the norm and the softmax over each head's N columns before the result leaves registers;
  4. attention @ values, with the residual added there; text rows pass through it unchanged.
Between cuBLAS products the same would move a normalised copy, the scores twice and the update once more: 1.3 GB instead
of 0.9 GB a sample. Which of the two is faster has to be measured.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import wrap_triton

from ._triton import padded, tl, triton
from .cost import Cost

# Tiles of both products: three stages of (128 x 64 + 64 x 128) bf16 are 96 KB, which every GPU since sm_80 has.
BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 64


def reference(
    hidden: Tensor, keys: Tensor, values: Tensor, weight: Tensor, bias: Tensor, heads: int, text_length: int, eps: float
) -> Tensor:
    text, video = hidden.split((text_length, hidden.shape[1] - text_length), dim=1)
    normed = F.layer_norm(video, weight.shape, weight, bias, eps)
    scores = (normed @ keys.transpose(-1, -2)).unflatten(-1, (heads, -1))  # [B, V, H, N]
    attention = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1).to(hidden.dtype).flatten(-2)
    return torch.cat((text, video + attention @ values), dim=1)


@triton.jit
def face_fold_kernel(  # type: ignore[no-untyped-def]
    keys, weight, bias, folded, sums, offsets, C: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """One program: one key times the weight of the norm, less its mean; what is left of its sum; its product with bias.

    A constant added to a key changes no score, because a normalised row sums to zero. Without its mean a key does not
    see the mean of the row either, so that no large numbers cancel later: what rounding left of the key's sum is all
    that meets the row's mean.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_C)
    inside = column < C
    key = tl.load(keys + row * C + column, mask=inside, other=0.0).to(tl.float32)
    scaled = key * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    stored = tl.where(inside, scaled - tl.sum(scaled, axis=0) / C, 0.0).to(folded.dtype.element_ty)
    tl.store(folded + row * C + column, stored, mask=inside)
    tl.store(sums + row, tl.sum(stored.to(tl.float32), axis=0))
    tl.store(offsets + row, tl.sum(key * tl.load(bias + column, mask=inside, other=0.0).to(tl.float32), axis=0))


@triton.jit
def face_statistics_kernel(  # type: ignore[no-untyped-def]
    hidden, means, rstds, length, text_length, EPS: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """One program: mean and 1 / standard deviation of one video row."""
    row, sample = tl.program_id(0), tl.program_id(1)
    source = (sample.to(tl.int64) * length + text_length + row) * C
    column = tl.arange(0, BLOCK_C)
    inside = column < C
    x = tl.load(hidden + source + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / C
    centred = tl.where(inside, x - mean, 0.0)
    target = sample.to(tl.int64) * (length - text_length) + row
    tl.store(means + target, mean)
    tl.store(rstds + target, tl.rsqrt(tl.sum(centred * centred, axis=0) / C + EPS))


@triton.jit
def face_scores_kernel(  # type: ignore[no-untyped-def]
    hidden, folded, sums, offsets, means, rstds, attention, length, text_length, tokens, key_stride,
    C: tl.constexpr, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M video rows by BLOCK_N identity tokens, whole heads of N, and their softmax."""
    sample = tl.program_id(2).to(tl.int64)
    video = length - text_length
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    token = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_K)
    x = hidden + (sample * length + text_length + row)[:, None] * C + step[None, :]
    y = folded + sample * key_stride * C + token[None, :] * C + step[:, None]
    scores = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, C, BLOCK_K):
        rows = tl.load(x, mask=(row < video)[:, None] & (start + step < C)[None, :], other=0.0)
        columns = tl.load(y, mask=(token < tokens)[None, :] & (start + step < C)[:, None], other=0.0)
        scores = tl.dot(rows, columns, scores, input_precision="ieee")
        x += BLOCK_K
        y += BLOCK_K
    mean = tl.load(means + sample * video + row, mask=row < video, other=0.0)
    rstd = tl.load(rstds + sample * video + row, mask=row < video, other=0.0)
    left = tl.load(sums + sample * key_stride + token, mask=token < tokens, other=0.0)
    offset = tl.load(offsets + sample * key_stride + token, mask=token < tokens, other=0.0)
    scores = (scores - mean[:, None] * left[None, :]) * rstd[:, None] + offset[None, :]
    heads = tl.reshape(scores, (BLOCK_M, BLOCK_N // N, N))
    heads = tl.exp(heads - tl.max(heads, axis=2)[:, :, None])
    heads = heads / tl.sum(heads, axis=2)[:, :, None]
    target = (sample * video + row)[:, None] * tokens + token[None, :]
    inside = (row < video)[:, None] & (token < tokens)[None, :]
    tl.store(attention + target, tl.reshape(heads, (BLOCK_M, BLOCK_N)), mask=inside)


@triton.jit
def face_update_kernel(  # type: ignore[no-untyped-def]
    hidden, attention, values, out, length, text_length, tokens, key_stride,
    C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M rows by BLOCK_N channels of hidden + attention @ values; nothing is added to text rows."""
    sample = tl.program_id(2).to(tl.int64)
    video = length - text_length
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_K)
    x = attention + (sample * video + row - text_length)[:, None] * tokens + step[None, :]
    y = values + (sample * key_stride + step)[:, None] * C + channel[None, :]
    update = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, tokens, BLOCK_K):
        known = start + step < tokens
        rows = tl.load(x, mask=((row >= text_length) & (row < length))[:, None] & known[None, :], other=0.0)
        columns = tl.load(y, mask=known[:, None] & (channel < C)[None, :], other=0.0)
        update = tl.dot(rows, columns, update, input_precision="ieee")
        x += BLOCK_K
        y += BLOCK_K * C
    inside = (row < length)[:, None] & (channel < C)[None, :]
    target = (sample * length + row)[:, None] * C + channel[None, :]
    before = tl.load(hidden + target, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + target, before + update, mask=inside)


def supported(hidden: Tensor, keys: Tensor, heads: int, text_length: int) -> bool:
    """Whether the kernels compute this: groups of the softmax that tile a block, and at least one video row."""
    tokens = keys.shape[1] // heads
    return tokens <= 256 and tokens & (tokens - 1) == 0 and hidden.shape[1] > text_length


def fake(
    hidden: Tensor, keys: Tensor, values: Tensor, weight: Tensor, bias: Tensor, heads: int, text_length: int, eps: float
) -> Tensor:
    return hidden.new_empty(hidden.shape)


def launch(
    hidden: Tensor, keys: Tensor, values: Tensor, weight: Tensor, bias: Tensor, heads: int, text_length: int, eps: float
) -> Tensor:
    """The operator consisid::face_cross_attention."""
    hidden, keys, values = hidden.contiguous(), keys.contiguous(), values.contiguous()
    batch, length, width = hidden.shape
    samples, tokens, _ = keys.shape
    video, group, block_c = length - text_length, tokens // heads, padded(width)
    folded, out = torch.empty_like(keys), torch.empty_like(hidden)
    sums = keys.new_empty((samples, tokens), dtype=torch.float32)
    offsets = torch.empty_like(sums)
    means = hidden.new_empty((batch, video), dtype=torch.float32)
    rstds = torch.empty_like(means)
    attention = hidden.new_empty((batch, video, tokens))
    wrap_triton(face_fold_kernel)[(samples * tokens,)](
        keys, weight, bias, folded, sums, offsets, C=width, BLOCK_C=block_c, num_warps=8
    )
    wrap_triton(face_statistics_kernel)[(video, batch)](
        hidden, means, rstds, length, text_length, EPS=eps, C=width, BLOCK_C=block_c, num_warps=8
    )
    key_stride = tokens if samples > 1 else 0
    block_k = 32 if hidden.dtype == torch.float32 else BLOCK_K
    block_n = max(16, group, min(BLOCK_N, padded(tokens)))
    wrap_triton(face_scores_kernel)[(triton.cdiv(tokens, block_n), triton.cdiv(video, BLOCK_M), batch)](
        hidden, folded, sums, offsets, means, rstds, attention, length, text_length, tokens, key_stride,
        C=width, N=group, BLOCK_M=BLOCK_M, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=8, num_stages=3,
    )  # fmt: skip
    wrap_triton(face_update_kernel)[(triton.cdiv(width, BLOCK_N), triton.cdiv(length, BLOCK_M), batch)](
        hidden, attention, values, out, length, text_length, tokens, key_stride,
        C=width, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=block_k, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


def cost(batch: int, length: int, text_length: int, width: int, heads: int, tokens: int, size: int) -> Cost:
    """Both products and the least traffic: hidden states in and out once, keys and values once; tokens are a head's.

    The four kernels move more: hidden states three times in instead of once, attention out and in.
    """
    video, columns = batch * (length - text_length), heads * tokens
    return Cost(
        flops=4 * video * width * columns + video * (8 * width + 4 * columns),
        bytes=(2 * batch * length * width + 2 * columns * width) * size,
    )
