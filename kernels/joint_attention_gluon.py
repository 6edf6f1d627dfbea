"""joint_attention for Hopper with warps of two kinds (Shah et al., FlashAttention-3, arXiv:2407.08608), in Gluon, the
level of Triton at which a program says which warps do what. Imported where a Config asks for it.

One warp only loads: it fills a ring of tiles of keys and values by the copy engine, and waits for a slot to be free.
Two groups of four warps have 64 queries each and all the registers that the loading warp gives up. They share what is
loaded. Each begins the scores of a block before it multiplies the weights of the block before with their values, and
computes exponentials while its products run. The numbers are the Triton kernel's, in the same order.

Barriers count phases: `full` of a slot ends one when its bytes have arrived, `empty` when both groups have read it. A
slot's n-th use waits for phase n of the one and n - 1 of the other, by parity; before its first use `empty` counts as
over, which is what waiting for parity 1 of a new barrier means.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ._triton import triton

GROUP_ROWS = 64  # queries of four warps: one tile of their matrix products
# Registers of a thread. 65,536 are shared by two groups of 128 threads and the loading warp's.
COMPUTING, LOADING = 240, 24


@gluon.constexpr_function
def product_layout(columns):  # type: ignore[no-untyped-def]
    """How four warps hold a product of so many columns."""
    return gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, columns, 16])


@gluon.jit
def _load(  # type: ignore[no-untyped-def]
    k, v, keys, values, full_k, empty_k, full_v, empty_v, sample, head, blocks,
    BLOCK_N: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """The loading warp: block after block of keys and values into the ring."""
    for i in range(blocks):
        slot = i % SLOTS
        free = ((i // SLOTS) & 1) ^ 1
        mbarrier.wait(empty_k.index(slot), free)
        mbarrier.expect(full_k.index(slot), k.block_type.nbytes)
        place = [sample, i * BLOCK_N, head, 0]
        tma.async_copy_global_to_shared(k, place, full_k.index(slot), keys.index(slot))
        mbarrier.wait(empty_v.index(slot), free)
        mbarrier.expect(full_v.index(slot), v.block_type.nbytes)
        tma.async_copy_global_to_shared(v, place, full_v.index(slot), values.index(slot))


@gluon.jit
def _tile(buffers, slot, BLOCK: gl.constexpr, D: gl.constexpr):  # type: ignore[no-untyped-def]
    """A slot as the matrix that it is: descriptors load [1, BLOCK, 1, D]."""
    return buffers.index(slot).reshape((BLOCK, D))


@gluon.jit
def _weigh(scores, highest, total, FACTOR: gl.constexpr):  # type: ignore[no-untyped-def]
    """The weights of a block's scores, by how much earlier results shrink, and the running maximum and sum."""
    raised = gl.maximum(highest, gl.max(scores, axis=1) * FACTOR)
    weights = gl.exp2(scores * FACTOR - raised[:, None])
    shrink = gl.exp2(highest - raised)
    return weights, shrink, raised, total * shrink + gl.sum(weights, axis=1)


@gluon.jit
def _advance(  # type: ignore[no-untyped-def]
    i, rows, left, shrink, highest, total, result, nothing, column, length,
    keys, values, full_k, empty_k, full_v, empty_v,
    FACTOR: gl.constexpr, BLOCK_N: gl.constexpr, D: gl.constexpr, SLOTS: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Take the values of block i - 1 into the result, and weigh the scores of block i."""
    summed: gl.constexpr = product_layout(D)
    slot, before = i % SLOTS, (i - 1) % SLOTS
    mbarrier.wait(full_k.index(slot), (i // SLOTS) & 1)
    right = _tile(keys, slot, BLOCK_N, D).permute((1, 0))
    scoring = warpgroup_mma(rows, right, nothing, use_acc=False, is_async=True)
    result = result * gl.convert_layout(shrink, gl.SliceLayout(1, summed))[:, None]
    mbarrier.wait(full_v.index(before), ((i - 1) // SLOTS) & 1)
    summing = warpgroup_mma(left, _tile(values, before, BLOCK_N, D), result, is_async=True)
    scores = warpgroup_mma_wait(1, deps=(scoring,))
    mbarrier.arrive(empty_k.index(slot))
    if MASKED:
        scores = gl.where((i * BLOCK_N + column < length)[None, :], scores, float("-inf"))
    weights, shrink, highest, total = _weigh(scores, highest, total, FACTOR)
    result = warpgroup_mma_wait(0, deps=(summing,))
    mbarrier.arrive(empty_v.index(before))
    left = gl.convert_layout(weights.to(rows.dtype), gl.DotOperandLayout(0, summed, 2))
    return left, shrink, highest, total, result


@gluon.jit
def _compute(  # type: ignore[no-untyped-def]
    rows, keys, values, full_k, empty_k, full_v, empty_v, out, sample, head, first, queries, length, heads, blocks,
    FACTOR: gl.constexpr, ROWS: gl.constexpr, BLOCK_N: gl.constexpr, D: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """A group of four warps: ROWS queries from first on."""
    scored: gl.constexpr = product_layout(BLOCK_N)
    summed: gl.constexpr = product_layout(D)
    nothing = gl.full([ROWS, BLOCK_N], 0.0, gl.float32, scored)
    result = gl.full([ROWS, D], 0.0, gl.float32, summed)
    highest = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, scored))
    total = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, scored))
    column = gl.arange(0, BLOCK_N, gl.SliceLayout(0, scored))

    mbarrier.wait(full_k.index(0), 0)
    scores = warpgroup_mma(rows, _tile(keys, 0, BLOCK_N, D).permute((1, 0)), nothing, use_acc=False)
    mbarrier.arrive(empty_k.index(0))
    scores = gl.where((column < length)[None, :], scores, float("-inf"))  # the first block may be the last
    weights, shrink, highest, total = _weigh(scores, highest, total, FACTOR)
    left = gl.convert_layout(weights.to(rows.dtype), gl.DotOperandLayout(0, summed, 2))
    for i in range(1, blocks - 1):
        left, shrink, highest, total, result = _advance(
            i, rows, left, shrink, highest, total, result, nothing, column, length,
            keys, values, full_k, empty_k, full_v, empty_v, FACTOR, BLOCK_N, D, SLOTS, False,
        )  # fmt: skip
    if blocks > 1:
        left, shrink, highest, total, result = _advance(
            blocks - 1, rows, left, shrink, highest, total, result, nothing, column, length,
            keys, values, full_k, empty_k, full_v, empty_v, FACTOR, BLOCK_N, D, SLOTS, True,
        )  # fmt: skip
    last = (blocks - 1) % SLOTS
    result = result * gl.convert_layout(shrink, gl.SliceLayout(1, summed))[:, None]
    mbarrier.wait(full_v.index(last), ((blocks - 1) // SLOTS) & 1)
    result = warpgroup_mma(left, _tile(values, last, BLOCK_N, D), result)

    result = result / gl.convert_layout(total, gl.SliceLayout(1, summed))[:, None]
    row = first + gl.arange(0, ROWS, gl.SliceLayout(1, summed))
    target = ((sample.to(gl.int64) * queries + row) * heads + head)[:, None] * D
    target = target + gl.arange(0, D, gl.SliceLayout(0, summed))[None, :]
    gl.store(out + target, result.to(rows.dtype), mask=(row < queries)[:, None])


@gluon.jit
def joint_attention_gluon_kernel(  # type: ignore[no-untyped-def]
    q, k, v, out, queries, length, heads,
    FACTOR: gl.constexpr, D: gl.constexpr, BLOCK_N: gl.constexpr, SLOTS: gl.constexpr, ROWS: gl.constexpr,
    COMPUTING: gl.constexpr, LOADING: gl.constexpr,
):  # fmt: skip
    """One program: two groups' queries of one head of one sample. q, k, v are descriptors; FACTOR > 0."""
    first, head, sample = gl.program_id(0) * 2 * ROWS, gl.program_id(1), gl.program_id(2)
    rows = gl.allocate_shared_memory(q.dtype, [2, 1, ROWS, 1, D], q.layout)
    keys = gl.allocate_shared_memory(k.dtype, [SLOTS, 1, BLOCK_N, 1, D], k.layout)
    values = gl.allocate_shared_memory(v.dtype, [SLOTS, 1, BLOCK_N, 1, D], v.layout)
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    full_k = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty_k = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    full_v = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty_v = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=1)
    for slot in gl.static_range(SLOTS):
        mbarrier.init(full_k.index(slot), count=1)
        mbarrier.init(empty_k.index(slot), count=2)
        mbarrier.init(full_v.index(slot), count=1)
        mbarrier.init(empty_v.index(slot), count=2)
    fence_async_shared()
    mbarrier.expect(ready, 2 * q.block_type.nbytes)
    tma.async_copy_global_to_shared(q, [sample, first, head, 0], ready, rows.index(0))
    tma.async_copy_global_to_shared(q, [sample, first + ROWS, head, 0], ready, rows.index(1))
    mbarrier.wait(ready, 0)
    blocks = (length + BLOCK_N - 1) // BLOCK_N
    one, two = _tile(rows, 0, ROWS, D), _tile(rows, 1, ROWS, D)
    gl.warp_specialize(
        [
            (_compute, (one, keys, values, full_k, empty_k, full_v, empty_v, out, sample, head, first, queries, length,
                        heads, blocks, FACTOR, ROWS, BLOCK_N, D, SLOTS)),
            (_compute, (two, keys, values, full_k, empty_k, full_v, empty_v, out, sample, head, first + ROWS, queries,
                        length, heads, blocks, FACTOR, ROWS, BLOCK_N, D, SLOTS)),
            (_load, (k, v, keys, values, full_k, empty_k, full_v, empty_v, sample, head, blocks, BLOCK_N, SLOTS)),
        ],
        [4, 1],
        [COMPUTING, LOADING],
    )  # fmt: skip


def launch_gluon(q: Tensor, k: Tensor, v: Tensor, out: Tensor, factor: float, block_n: int, slots: int) -> None:
    """Write attention into `out`; bfloat16 or float16, head dimension 64 or 128, on compute capability 9.0.

    Args:
        factor: the scale times log2(e).
        block_n: keys of a block.
        slots: blocks of keys and of values that are loaded ahead.
    """
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    batch, queries, heads, dim = q.shape
    dtype = gl.bfloat16 if q.dtype == torch.bfloat16 else gl.float16
    descriptors = []
    for tensor, rows in ((q, GROUP_ROWS), (k, block_n), (v, block_n)):
        block = [1, rows, 1, dim]
        layout = gl.NVMMASharedLayout.get_default_for(block, dtype)
        descriptors.append(TensorDescriptor.from_tensor(tensor, block, layout))
    joint_attention_gluon_kernel[(triton.cdiv(queries, 2 * GROUP_ROWS), heads, batch)](
        *descriptors, out, queries, k.shape[1], heads,
        FACTOR=factor, D=dim, BLOCK_N=block_n, SLOTS=slots, ROWS=GROUP_ROWS, COMPUTING=COMPUTING, LOADING=LOADING,
        num_warps=4,
    )  # fmt: skip
