"""LayerNorm with the scale and shift of adaptive normalisation, text and video rows with their own (Peebles and Xie,
arXiv:2212.09748, in the two-stream form of CogVideoX), and the gated residual that precedes it.

A modulation is [2, 3, C]: first video, then text; each with shift, scale, gate. The first `text_length` rows of a
hidden state are text, the others video.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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


def modulated_norm(
    hidden: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, text_length: int, eps: float
) -> Tensor:
    """LayerNorm(hidden) * (1 + scale) + shift.

    Args:
        hidden: [B, S, C].
        modulation: [2, 3, C].
        weight, bias: [C], of the LayerNorm.
        text_length: how many of the first rows are text.
        eps: of the LayerNorm.

    Returns:
        [B, S, C] in hidden's dtype.
    """
    return reference_norm(hidden, modulation, weight, bias, text_length, eps)


def gated_residual(hidden: Tensor, update: Tensor, modulation: Tensor, text_length: int) -> Tensor:
    """hidden + gate * update; shapes as in modulated_norm, update is [B, S, C]."""
    return reference_residual(hidden, update, modulation, text_length)


def gated_modulated_norm(
    hidden: Tensor, update: Tensor, gate_modulation: Tensor, modulation: Tensor,
    weight: Tensor, bias: Tensor, text_length: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """gated_residual with the gate of gate_modulation, then modulated_norm of its result, in one pass over memory.

    Returns:
        The new hidden state and its modulated norm, each [B, S, C].
    """
    hidden = reference_residual(hidden, update, gate_modulation, text_length)
    return hidden, reference_norm(hidden, modulation, weight, bias, text_length, eps)
