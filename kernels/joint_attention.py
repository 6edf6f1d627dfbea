"""Attention over text and video tokens together (Dao et al., FlashAttention, arXiv:2205.14135; the online softmax of
Milakov and Gimelshein, arXiv:1805.02867).

One program computes BLOCK_M queries of one head: it walks over the keys in blocks, keeping the running maximum and sum
of each row, so scores never reach memory. The scale and log2(e) are one factor inside the exponent, where the
subtraction of the maximum makes it a fused multiply-add: scaling q beforehand (in qk_norm_rope) would save nothing.
Only the last block of keys is masked, outside the main loop.

At head_dim 64 a block of 128 x 128 scores needs as many cycles for its exponentials as for its matrix products on
Hopper (16 exponentials against 4096 bf16 FLOP per cycle and multiprocessor), and one waits for the other. Two options
of the kernel are about that: a share of the exponentials runs as a polynomial on the FMA units (as FlashAttention-4
does), and the scores of the next block are begun before the exponentials of this one (as FlashAttention-3 does within
a warpgroup; Shah et al., arXiv:2407.08608): in the code for sm_90 the exponentials then stand between the issue of
those products and the wait for them. Two blocks in an iteration save the moves that this costs, 64 of 517 instructions.
The way tiles are read (plain loads, or the copy engine by tensor descriptors), sizes, pipelining and warp
specialisation (Triton: Blackwell only; for Hopper it compiles to the same code) are further options of a Config, from
tuning.json; so is another kernel for Hopper, whose warps have different tasks (joint_attention_gluon.py). What each
costs in instructions is in instructions.json (instructions.py). A persistent grid is not one of them: 13,344 programs
are a hundred waves of a large GPU, whose last costs less than 1 %.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from ._triton import tl, triton
from .attention_others import PACKAGES, by_package, by_torch_preferring, reference
from .cost import Cost

LOG2_E = 1.4426950408889634


@triton.jit
def _exp2_on_fma(x):  # type: ignore[no-untyped-def]
    """2 ** x for x <= 0, to 7.5e-5: a cubic for the fraction in [-1/2, 1/2], the rest added to the exponent's bits.

    Adding 1.5 * 2^23 rounds to the nearest whole number and leaves it in the low bits, without a conversion, which
    would run on the units this is meant to relieve. The coefficients minimise the largest relative error.
    """
    x = tl.maximum(x, -126.0)
    shifted = x + 12582912.0
    fraction = x - (shifted - 12582912.0)
    power = 0.055171689851084706 * fraction + 0.24261117400365123
    power = power * fraction + 0.6932609868424779
    power = power * fraction + 0.9999280704579907
    exponent = shifted.to(tl.int32, bitcast=True) << 23
    return (power.to(tl.int32, bitcast=True) + exponent).to(tl.float32, bitcast=True)


@triton.jit
def _exp2(x, POLYNOMIAL: tl.constexpr):  # type: ignore[no-untyped-def]
    """2 ** x of a block; one in POLYNOMIAL columns (2, 4 or, of 64, 8; 0: none) on the FMA units.

    Eights of columns alternate: in the accumulators of wgmma the columns c and c + 8 belong to one thread, so taking a
    block apart moves nothing between threads. With mma it does (16 more shuffles a block, see instructions.json).
    """
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    if POLYNOMIAL == 0:
        power = tl.exp2(x)
    else:
        left, right = tl.split(tl.permute(tl.reshape(x, (rows, columns // 16, 2, 8)), (0, 1, 3, 2)))
        left, right = tl.exp2(left), tl.reshape(right, (rows, columns // 2))
        right = _exp2(right, POLYNOMIAL // 2) if POLYNOMIAL > 2 else _exp2_on_fma(right)
        power = tl.join(left, tl.reshape(right, (rows, columns // 16, 8)))
        power = tl.reshape(tl.permute(power, (0, 1, 3, 2)), (rows, columns))
    return power


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    source, sample, head, start, length, stride_b, stride_s, stride_h,
    D: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """BLOCK tokens from start on of one head of [B, S, H, D], as [BLOCK, D]; zero past the end."""
    if DESCRIPTORS:
        tile = tl.reshape(source.load([sample, start, head, 0]), (BLOCK, D))
    else:
        base = source + sample.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
        row = tl.arange(0, BLOCK)
        pointers = base + tl.cast(start, tl.int64) * stride_s + row[:, None] * stride_s + tl.arange(0, D)[None, :]
        inside = (start + row < length)[:, None]
        tile = tl.load(pointers, mask=inside, other=0.0) if MASKED else tl.load(pointers)
    return tile


@triton.jit
def _absorb(  # type: ignore[no-untyped-def]
    scores, v, total, highest, result, FACTOR: tl.constexpr, POLYNOMIAL: tl.constexpr
):
    """Take the scores and values of one block of keys into the running sum, maximum and result of each query."""
    raised = tl.maximum(highest, tl.max(scores, axis=1) * FACTOR)
    weights = _exp2(scores * FACTOR - raised[:, None], POLYNOMIAL)
    shrink = tl.exp2(highest - raised)
    total = total * shrink + tl.sum(weights, axis=1)
    result = tl.dot(weights.to(v.dtype), v, result * shrink[:, None], input_precision="ieee")
    return total, raised, result


@triton.jit
def joint_attention_kernel(  # type: ignore[no-untyped-def]
    q, k, v, out, queries, length, heads,
    q_b, q_s, q_h, k_b, k_s, k_h, v_b, v_s, v_h,
    FACTOR: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr, WARP_SPECIALIZE: tl.constexpr, POLYNOMIAL: tl.constexpr, AHEAD: tl.constexpr,
    UNROLLED: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head of one sample. q, k, v are pointers or descriptors; FACTOR > 0.

    AHEAD: the scores of the next block are begun before the exponentials of this one. UNROLLED, with AHEAD: two blocks
    in an iteration, so that the scores of the next become those of this one by their names and not by moving them.
    """
    first, head, sample = tl.program_id(0) * BLOCK_M, tl.program_id(1), tl.program_id(2)
    rows = _tile(q, sample, head, first, queries, q_b, q_s, q_h, D, BLOCK_M, True, DESCRIPTORS)
    total = tl.zeros((BLOCK_M,), tl.float32)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    result = tl.zeros((BLOCK_M, D), tl.float32)
    last = (length - 1) // BLOCK_N * BLOCK_N  # where the last block begins, the only one that may be short
    if AHEAD:
        keys = _tile(k, sample, head, 0, length, k_b, k_s, k_h, D, BLOCK_N, True, DESCRIPTORS)
        scores = tl.dot(rows, tl.trans(keys), input_precision="ieee")
    if AHEAD and UNROLLED:
        paired = last // (2 * BLOCK_N) * (2 * BLOCK_N)
        for start in tl.range(0, paired, 2 * BLOCK_N, warp_specialize=WARP_SPECIALIZE):
            second = start + BLOCK_N
            keys = _tile(k, sample, head, second, length, k_b, k_s, k_h, D, BLOCK_N, False, DESCRIPTORS)
            following = tl.dot(rows, tl.trans(keys), input_precision="ieee")
            values = _tile(v, sample, head, start, length, v_b, v_s, v_h, D, BLOCK_N, False, DESCRIPTORS)
            total, highest, result = _absorb(scores, values, total, highest, result, FACTOR, POLYNOMIAL)
            keys = _tile(k, sample, head, second + BLOCK_N, length, k_b, k_s, k_h, D, BLOCK_N, True, DESCRIPTORS)
            scores = tl.dot(rows, tl.trans(keys), input_precision="ieee")
            values = _tile(v, sample, head, second, length, v_b, v_s, v_h, D, BLOCK_N, False, DESCRIPTORS)
            total, highest, result = _absorb(following, values, total, highest, result, FACTOR, POLYNOMIAL)
        if paired < last:  # one whole block is left over
            values = _tile(v, sample, head, paired, length, v_b, v_s, v_h, D, BLOCK_N, False, DESCRIPTORS)
            total, highest, result = _absorb(scores, values, total, highest, result, FACTOR, POLYNOMIAL)
            keys = _tile(k, sample, head, last, length, k_b, k_s, k_h, D, BLOCK_N, True, DESCRIPTORS)
            scores = tl.dot(rows, tl.trans(keys), input_precision="ieee")
    else:
        for start in tl.range(0, last, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
            values = _tile(v, sample, head, start, length, v_b, v_s, v_h, D, BLOCK_N, False, DESCRIPTORS)
            if AHEAD:
                keys = _tile(k, sample, head, start + BLOCK_N, length, k_b, k_s, k_h, D, BLOCK_N, True, DESCRIPTORS)
                following = tl.dot(rows, tl.trans(keys), input_precision="ieee")
                total, highest, result = _absorb(scores, values, total, highest, result, FACTOR, POLYNOMIAL)
                scores = following
            else:
                keys = _tile(k, sample, head, start, length, k_b, k_s, k_h, D, BLOCK_N, False, DESCRIPTORS)
                now = tl.dot(rows, tl.trans(keys), input_precision="ieee")
                total, highest, result = _absorb(now, values, total, highest, result, FACTOR, POLYNOMIAL)
    if not AHEAD:
        keys = _tile(k, sample, head, last, length, k_b, k_s, k_h, D, BLOCK_N, True, DESCRIPTORS)
        scores = tl.dot(rows, tl.trans(keys), input_precision="ieee")
    scores = tl.where((last + tl.arange(0, BLOCK_N) < length)[None, :], scores, float("-inf"))
    values = _tile(v, sample, head, last, length, v_b, v_s, v_h, D, BLOCK_N, True, DESCRIPTORS)
    total, highest, result = _absorb(scores, values, total, highest, result, FACTOR, 0)
    row = first + tl.arange(0, BLOCK_M)
    target = ((sample.to(tl.int64) * queries + row) * heads + head)[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(out + target, result / total[:, None], mask=(row < queries)[:, None])


def by_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float, config: dispatch.Config) -> Tensor:
    """Our kernel. The head dimension is a power of two from 16 to 128, the scale positive, no length is zero."""
    batch, queries, heads, dim = q.shape
    out = q.new_empty(q.shape)
    if config.producer:
        from .joint_attention_gluon import launch_gluon

        launch_gluon(q, k, v, out, scale * LOG2_E, config.block_n, config.num_stages)
        return out
    strides = [stride for x in (q, k, v) for stride in x.stride()[:3]]
    sources: tuple[Any, ...] = (q, k, v)
    if config.descriptors:
        from triton.tools.tensor_descriptor import TensorDescriptor

        blocks = (config.block_m, config.block_n, config.block_n)
        sources = tuple(
            TensorDescriptor.from_tensor(x, [1, block, 1, dim]) for x, block in zip(sources, blocks, strict=True)
        )
    joint_attention_kernel[(triton.cdiv(queries, config.block_m), heads, batch)](
        *sources, out, queries, k.shape[1], heads, *strides,
        FACTOR=scale * LOG2_E, D=dim, BLOCK_M=config.block_m, BLOCK_N=config.block_n, DESCRIPTORS=config.descriptors,
        WARP_SPECIALIZE=config.warp_specialize, POLYNOMIAL=config.polynomial, AHEAD=config.ahead,
        UNROLLED=config.unrolled,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out


def supported(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    """Whether our kernel computes this."""
    dim = q.shape[-1]
    sizes = dim in (16, 32, 64, 128) and q.numel() > 0 and k.numel() > 0
    return sizes and scale > 0 and all(x.stride(-1) == 1 for x in (q, k, v))


def launch(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The operator consisid::joint_attention: the implementation which the table names for this GPU and shape."""
    choice = dispatch.choose(q.device, q.dtype, q.shape[-1], k.shape[1])
    if choice.implementation == "ours" and supported(q, k, v, scale):
        return by_kernel(q, k, v, scale, choice.config)
    if choice.implementation in ("ours", "torch"):
        return reference(q, k, v, scale).contiguous()
    by = by_package if choice.implementation in PACKAGES else by_torch_preferring
    return by(q, k, v, scale, choice.implementation).contiguous()


def fake(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return q.new_empty(q.shape)


def describe(device: torch.device | str, shape: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> str:
    """Which implementation computes joint_attention there, and why; shape is that of k, [B, S, H, D]."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"torch's scaled_dot_product_attention, because no kernel runs on {device.type}"
    choice = dispatch.choose(device, dtype, shape[3], shape[1])
    return f"{choice.implementation}, {choice.reason}"


def cost(batch: int, queries: int, length: int, heads: int, dim: int, size: int) -> Cost:
    """The two matrix products. The exponentials, batch * heads * queries * length of them, are left out, so that a rate
    is in the TFLOP/s in which attention is published; they are 1 in 4 * dim, and run on other units."""
    elements = batch * heads * dim * (2 * queries + 2 * length)
    return Cost(flops=4 * batch * heads * queries * length * dim, bytes=elements * size)
