"""GroupNorm conditioned on the latents, then SiLU: the normalisation of the CogVideoX decoder (Zheng et al., MoVQ,
arXiv:2209.09002).

The reference brings the latents to the size of the features and then applies two 1x1x1 convolutions. A pointwise
convolution commutes with nearest-neighbour upsampling, so scale and shift are computed at the size of the latents and
read through the index map of the upsampling.

Three kernels. The first reduces chunks of x to a mean and a sum of squared deviations, the second merges the chunks
of a group, the third normalises, scales, shifts and applies SiLU. A group of the decoder at full size has 12 million
elements, so it cannot stay on chip between statistics and result: x is read twice and written once, 6 bytes an
element in bfloat16. Tensors may have more than 2^31 elements. Bound by memory.

A causal convolution follows, which wants some frames in front. The third kernel writes them too, so that the result
is not copied behind them: of five passes over memory that leaves three, and the result exists once.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import wrap_triton

from ._triton import padded, tl, triton
from .cost import Cost

# Elements of x in a tile of the statistics, and tiles in a chunk: a chunk of 64 Ki elements costs 8 bytes of
# workspace a group and leaves thousands of programs at the sizes that take time.
TILE, TILES = 8192, 8


def upsample(z: Tensor, size: torch.Size) -> Tensor:
    """Nearest neighbour to size [F, H, W]; with an odd F > 1 the first frame is brought along by itself."""
    if size[0] > 1 and size[0] % 2 == 1:
        first = F.interpolate(z[:, :, :1], size=(1, *size[1:]))
        rest = F.interpolate(z[:, :, 1:], size=(size[0] - 1, *size[1:]))
        return torch.cat((first, rest), dim=2)
    return F.interpolate(z, size=tuple(size))


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, lead: int = 0,
    before: Tensor | None = None,
) -> Tensor:  # fmt: skip
    normed = F.group_norm(x, groups, weight, bias, eps)
    result = F.silu(normed * upsample(scale, x.shape[2:]) + upsample(shift, x.shape[2:]))
    if lead == 0:
        return result
    return torch.cat((result[:, :, :1].expand(-1, -1, lead, -1, -1) if before is None else before, result), dim=2)


@triton.jit
def group_statistics_kernel(  # type: ignore[no-untyped-def]
    x, means, squares, positions, chunks,
    STRIDE: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr, BLOCK_P: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """One program: mean and sum of squared deviations of one chunk, for GROUPS groups of MEMBERS adjacent elements.

    Contiguous: the chunk is part of one group (GROUPS = MEMBERS = STRIDE = 1). Channels last: a position holds all
    channels, STRIDE of them, so a program sees every group. Tiles are merged by Chan, Golub and LeVeque's formula:
    no difference of large squares, however many elements there are.
    """
    chunk, outer = tl.program_id(0), tl.program_id(1)
    base = outer.to(tl.int64) * positions * STRIDE
    column = tl.arange(0, GROUPS * MEMBERS)
    count = tl.zeros((GROUPS,), tl.float32)
    mean = tl.zeros((GROUPS,), tl.float32)
    square = tl.zeros((GROUPS,), tl.float32)
    for tile in range(TILES):
        position = (chunk.to(tl.int64) * TILES + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (position < positions)[:, None]
        values = tl.load(x + base + position[:, None] * STRIDE + column[None, :], mask=inside, other=0.0)
        values = tl.reshape(values.to(tl.float32), (BLOCK_P, GROUPS, MEMBERS))
        rows = tl.minimum(tl.maximum(positions - (chunk.to(tl.int64) * TILES + tile) * BLOCK_P, 0), BLOCK_P)
        new = rows.to(tl.float32) * MEMBERS
        average = tl.sum(tl.sum(values, axis=2), axis=0) / tl.maximum(new, 1.0)
        deviation = tl.where(inside[:, :, None], values - average[None, :, None], 0.0)
        total = tl.maximum(count + new, 1.0)
        delta = average - mean
        square += tl.sum(tl.sum(deviation * deviation, axis=2), axis=0) + delta * delta * count * new / total
        mean += delta * new / total
        count += new
    group = outer.to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    tl.store(means + group * chunks + chunk, mean)
    tl.store(squares + group * chunks + chunk, square)


@triton.jit
def group_combine_kernel(  # type: ignore[no-untyped-def]
    means, squares, mean_out, rstd_out, elements, per_chunk, chunks, EPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One program: mean and 1 / standard deviation of one group, from its chunks, of which the last may be short."""
    group = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        size = tl.minimum(per_chunk, elements - chunk.to(tl.int64) * per_chunk).to(tl.float32)
        total += tl.load(means + group * chunks + chunk, mask=chunk < chunks, other=0.0) * size
    mean = tl.sum(total, axis=0) / (elements * 1.0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        size = tl.minimum(per_chunk, elements - chunk.to(tl.int64) * per_chunk).to(tl.float32)
        delta = tl.load(means + group * chunks + chunk, mask=chunk < chunks, other=0.0) - mean
        square = tl.load(squares + group * chunks + chunk, mask=chunk < chunks, other=0.0) + size * delta * delta
        total += tl.where(chunk < chunks, square, 0.0)
    tl.store(mean_out + group, mean)
    tl.store(rstd_out + group, 1.0 / tl.sqrt(tl.sum(total, axis=0) / (elements * 1.0) + EPS))


@triton.jit
def group_norm_silu_kernel(  # type: ignore[no-untyped-def]
    x, before, out, weight, bias, scale, shift, mean, rstd, s_b, s_c, s_t, s_y, s_x,
    GROUPS: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, LEAD: tl.constexpr, BEFORE: tl.constexpr,
    FRAMES: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    LOW_FRAMES: tl.constexpr, LOW_HEIGHT: tl.constexpr, LOW_WIDTH: tl.constexpr,
    RUN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_R runs of RUN positions, BLOCK_C channels of one sample. LAST: channels last.

    LEAD frames of the result come before those of x. BEFORE: a tensor has them; else they are the first frame's again.

    The positions of a run have the same latent, so its index and its values are worked out once a run. With the sizes
    constant, the divisions in it are multiplications: otherwise they, not memory, would limit the kernel.
    """
    area: tl.constexpr = HEIGHT * WIDTH
    positions: tl.constexpr = (LEAD + FRAMES) * area  # of the result
    step: tl.constexpr = C if LAST else 1  # from one position to the next
    sample = tl.program_id(2)
    run = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < C
    real = (run < positions // RUN)[:, None, None] & known[None, None, :]
    position = (run.to(tl.int64) * RUN)[:, None, None] + tl.arange(0, RUN)[None, :, None]

    row, u = run // (WIDTH // RUN), run % (WIDTH // RUN) * RUN
    frame, y = row // HEIGHT, row % HEIGHT
    t = tl.maximum(frame - LEAD, 0)
    source = position - (tl.minimum(frame, LEAD) * area)[:, None, None]
    computed = real & (frame >= LEAD)[:, None, None] if BEFORE else real
    if FRAMES > 1 and FRAMES % 2 == 1:  # frame 0 has a latent frame of its own
        low_t = tl.where(t == 0, 0, 1 + (t - 1) * (LOW_FRAMES - 1) // (FRAMES - 1))
    else:
        low_t = t * LOW_FRAMES // FRAMES
    low = low_t * s_t + y * LOW_HEIGHT // HEIGHT * s_y + u * LOW_WIDTH // WIDTH * s_x
    low = sample.to(tl.int64) * s_b + channel[None, None, :].to(tl.int64) * s_c + low[:, None, None]
    factor = tl.load(scale + low, mask=computed, other=0.0).to(tl.float32)
    summand = tl.load(shift + low, mask=computed, other=0.0).to(tl.float32)

    group = sample * GROUPS + channel // (C // GROUPS)
    gain = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    gain *= tl.load(rstd + group, mask=known, other=0.0)
    base = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    centre = tl.load(mean + group, mask=known, other=0.0)

    wide = channel[None, None, :].to(tl.int64)
    offset = sample.to(tl.int64) * C * (FRAMES * area) + source * step + wide * (1 if LAST else FRAMES * area)
    value = tl.load(x + offset, mask=computed, other=0.0).to(tl.float32)
    value = (value - centre[None, None, :]) * gain[None, None, :] + base[None, None, :]
    value = value * factor + summand
    value = value / (1.0 + tl.exp(-value))
    if BEFORE:
        offset = sample.to(tl.int64) * C * (LEAD * area) + position * step + wide * (1 if LAST else LEAD * area)
        given = tl.load(before + offset, mask=real & (frame < LEAD)[:, None, None], other=0.0).to(tl.float32)
        value = tl.where((frame < LEAD)[:, None, None], given, value)
    offset = sample.to(tl.int64) * C * positions + position * step + wide * (1 if LAST else positions)
    tl.store(out + offset, value, mask=real)


def _power_of_two(n: int) -> bool:
    return n & (n - 1) == 0


def whole_ratios(size: torch.Size, low: torch.Size) -> bool:
    """Whether the kernel's index map in whole numbers is F.interpolate's, which computes it in floating point."""
    frames, low_frames = size[0], low[0]
    if frames > 1 and frames % 2 == 1:
        frames, low_frames = frames - 1, low_frames - 1
    pairs = ((frames, low_frames), (size[1], low[1]), (size[2], low[2]))
    return all(0 < small <= large and large % small == 0 for large, small in pairs)


def _channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d)


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last_3d if _channels_last(x) else torch.contiguous_format


def fake(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, lead: int = 0,
    before: Tensor | None = None,
) -> Tensor:  # fmt: skip
    batch, channels, frames, height, width = x.shape
    shape = (batch, channels, lead + frames, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_layout(x))


def launch(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, lead: int = 0,
    before: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The operator consisid::group_norm_silu. The result is channels last where x is, otherwise contiguous."""
    batch, channels, frames, height, width = x.shape
    out = fake(x, weight, bias, scale, shift, groups, eps, lead, before)
    last = _channels_last(x)
    if before is not None:
        before = before.contiguous(memory_format=_layout(x))
    if not last:
        x = x.contiguous()
    members, positions = channels // groups, frames * height * width
    wide = last and _power_of_two(channels) and _power_of_two(groups)
    y = x if wide or not last else x.contiguous()  # a tile cannot hold whole groups: read a copy
    # Statistics: rows of a tile, elements in a row, rows of a group and how many such there are.
    row, rows, outer = (channels, positions, batch) if wide else (1, members * positions, batch * groups)
    block, tiles = max(1, TILE // row), TILES
    chunks = triton.cdiv(rows, block * tiles)
    means = x.new_empty((batch * groups, chunks), dtype=torch.float32)
    squares = torch.empty_like(means)
    mean = x.new_empty((batch * groups,), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    wrap_triton(group_statistics_kernel)[(chunks, outer)](
        y, means, squares, rows, chunks,
        STRIDE=row, GROUPS=groups if wide else 1, MEMBERS=members if wide else 1, BLOCK_P=block, TILES=tiles,
        num_warps=8,
    )  # fmt: skip
    per_chunk = block * tiles * (members if wide else 1)
    wrap_triton(group_combine_kernel)[(batch * groups,)](
        means, squares, mean, rstd, members * positions, per_chunk, chunks, EPS=eps, BLOCK=1024, num_warps=4
    )
    if shift.stride() != scale.stride():
        scale, shift = scale.contiguous(), shift.contiguous()
    low_frames, low_height, low_width = scale.shape[2:]
    ratio = width // low_width
    run = min(ratio & -ratio, 16)  # the largest power of two in the ratio
    block_c = min(padded(channels), 64) if last else 1
    block_r = 2048 // block_c // run
    runs_of_out = (lead + frames) * height * width // run
    grid = (triton.cdiv(runs_of_out, block_r), triton.cdiv(channels, block_c), batch)
    wrap_triton(group_norm_silu_kernel)[grid](
        x, x if before is None else before, out, weight, bias, scale, shift, mean, rstd, *scale.stride(),
        GROUPS=groups, C=channels, LAST=last, LEAD=lead, BEFORE=before is not None,
        FRAMES=frames, HEIGHT=height, WIDTH=width,
        LOW_FRAMES=low_frames, LOW_HEIGHT=low_height, LOW_WIDTH=low_width,
        RUN=run, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    return out


def cost(
    batch: int, channels: int, size: tuple[int, int, int], low: tuple[int, int, int], width: int, lead: int = 0
) -> Cost:
    """x is read twice (statistics, then result) and written once, the frames in front once each way, at `width` bytes
    an element."""
    elements = batch * channels * math.prod(size)
    latents = batch * channels * math.prod(low)
    front = batch * channels * lead * size[1] * size[2]
    return Cost(flops=elements * (5 + 9), bytes=(3 * elements + 2 * front + 2 * latents) * width)
