"""LayerNorm with the scale and shift of adaptive normalisation, text and video rows with their own (Peebles and Xie,
arXiv:2212.09748, in the two-stream form of CogVideoX), and the gated residual that precedes it.

A modulation is [2, 3, C]: first video, then text; each with shift, scale, gate. The first `text_length` rows of a
hidden state are text, the others video.

One kernel serves the three functions: a program holds one row in float32 registers, so a hidden state is read once
and what is asked for is written once. Text and video rows differ only in which row of the modulation they read, so
nothing is split or concatenated in memory. Bound by memory: at most 13 FLOP an element.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import wrap_triton

from ._triton import padded, tl, triton
from .cost import Cost

VIDEO, TEXT = 0, 1
SHIFT, SCALE, GATE = 0, 1, 2


def _rows(modulation: Tensor, which: int) -> tuple[Tensor, Tensor]:
    return modulation[TEXT, which], modulation[VIDEO, which]


def reference_norm(
    hidden: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, text_length: int, eps: float
) -> Tensor:
    normed = F.layer_norm(hidden, weight.shape, weight, bias, eps)
    parts = normed.split((text_length, normed.shape[1] - text_length), dim=1)
    scales, shifts = _rows(modulation, SCALE), _rows(modulation, SHIFT)
    parts = [part * (1 + scale) + shift for part, scale, shift in zip(parts, scales, shifts, strict=True)]
    return torch.cat(parts, dim=1)


def reference_residual(hidden: Tensor, update: Tensor, modulation: Tensor, text_length: int) -> Tensor:
    parts = update.split((text_length, update.shape[1] - text_length), dim=1)
    gates = _rows(modulation, GATE)
    return hidden + torch.cat([part * gate for part, gate in zip(parts, gates, strict=True)], dim=1)


def reference_both(
    hidden: Tensor, update: Tensor, gate_modulation: Tensor, modulation: Tensor,
    weight: Tensor, bias: Tensor, text_length: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    hidden = reference_residual(hidden, update, gate_modulation, text_length)
    return hidden, reference_norm(hidden, modulation, weight, bias, text_length, eps)


@triton.jit
def modulated_norm_kernel(  # type: ignore[no-untyped-def]
    hidden, update, gate_modulation, modulation, weight, bias, hidden_out, normed_out, length, text_length,
    EPS: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, RESIDUAL: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """One program: one row. RESIDUAL: add the gated update and store the sum; NORM: store its modulated norm."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_C)
    inside = column < C
    stream = tl.where(row % length < text_length, 1, 0)  # TEXT, VIDEO: the rows of a modulation
    x = tl.load(hidden + row * C + column, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        gate = tl.load(gate_modulation + (stream * 3 + 2) * C + column, mask=inside, other=0.0).to(tl.float32)
        x += gate * tl.load(update + row * C + column, mask=inside, other=0.0).to(tl.float32)
        # The norm sees the sum as it is stored: fused or in two steps, the same bytes.
        stored = x.to(hidden_out.dtype.element_ty)
        tl.store(hidden_out + row * C + column, stored, mask=inside)
        x = stored.to(tl.float32)
    if NORM:
        centred = tl.where(inside, x - tl.sum(x, axis=0) / C, 0.0)
        x = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / C + EPS)
        x = x * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        x += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(modulation + stream * 3 * C + column, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(modulation + (stream * 3 + 1) * C + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(normed_out + row * C + column, x * (1 + scale) + shift, mask=inside)


def warps(width: int) -> int:
    """Sixteen elements of a row for each thread, in two 16-byte loads; 8 warps for the 3072 of ConsisID."""
    return min(8, max(1, padded(width) // (32 * 16)))


def launch_norm(
    hidden: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, text_length: int, eps: float
) -> Tensor:
    """The operator consisid::modulated_norm."""
    hidden, modulation = hidden.contiguous(), modulation.contiguous()
    normed = torch.empty_like(hidden)
    batch, length, width = hidden.shape
    wrap_triton(modulated_norm_kernel)[(batch * length,)](
        hidden, hidden, modulation, modulation, weight, bias, normed, normed, length, text_length,
        EPS=eps, C=width, BLOCK_C=padded(width), RESIDUAL=False, NORM=True, num_warps=warps(width),
    )  # fmt: skip
    return normed


def launch_residual(hidden: Tensor, update: Tensor, modulation: Tensor, text_length: int) -> Tensor:
    """The operator consisid::gated_residual."""
    hidden, update, modulation = hidden.contiguous(), update.contiguous(), modulation.contiguous()
    total = torch.empty_like(hidden)
    batch, length, width = hidden.shape
    wrap_triton(modulated_norm_kernel)[(batch * length,)](
        hidden, update, modulation, modulation, modulation, modulation, total, total, length, text_length,
        EPS=0.0, C=width, BLOCK_C=padded(width), RESIDUAL=True, NORM=False, num_warps=warps(width),
    )  # fmt: skip
    return total


def launch_both(
    hidden: Tensor, update: Tensor, gate_modulation: Tensor, modulation: Tensor,
    weight: Tensor, bias: Tensor, text_length: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator consisid::gated_modulated_norm."""
    hidden, update = hidden.contiguous(), update.contiguous()
    total, normed = torch.empty_like(hidden), torch.empty_like(hidden)
    batch, length, width = hidden.shape
    wrap_triton(modulated_norm_kernel)[(batch * length,)](
        hidden, update, gate_modulation.contiguous(), modulation.contiguous(), weight, bias, total, normed,
        length, text_length,
        EPS=eps, C=width, BLOCK_C=padded(width), RESIDUAL=True, NORM=True, num_warps=warps(width),
    )  # fmt: skip
    return total, normed


def _contiguous(hidden: Tensor) -> Tensor:
    return hidden.new_empty(hidden.shape)


def fake_norm(hidden: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, text_length: int, eps: float) -> Tensor:
    return _contiguous(hidden)


def fake_residual(hidden: Tensor, update: Tensor, modulation: Tensor, text_length: int) -> Tensor:
    return _contiguous(hidden)


def fake_both(
    hidden: Tensor, update: Tensor, gate_modulation: Tensor, modulation: Tensor,
    weight: Tensor, bias: Tensor, text_length: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _contiguous(hidden), _contiguous(hidden)


def cost(batch: int, length: int, width: int, size: int, residual: bool, norm: bool) -> Cost:
    """Of modulated_norm (norm), gated_residual (residual) or both, at `size` bytes an element."""
    elements = batch * length * width
    passes = 1 + residual * 2 + norm  # the hidden state in; the update in and the sum out; the norm out
    return Cost(flops=elements * (residual * 2 + norm * 11), bytes=passes * elements * size + 6 * width * size)
