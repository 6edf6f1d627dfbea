"""What the operators allocate for themselves on a GPU besides what they return, for whoever counts memory.

A fake tensor tells what an operator returns, not what its launcher allocates on the way; this table is kept beside the
launchers for that. Bytes, one entry per tensor, in the order of allocation; all are free when the operator returns.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def _copies(*inputs: Tensor) -> list[int]:
    """Inputs that have to be contiguous and are not."""
    return [x.numel() * x.itemsize for x in inputs if not x.is_contiguous()]


def _modulated_norm(hidden: Tensor, modulation: Tensor, *rest: Any) -> list[int]:
    return _copies(hidden, modulation)


def _residual(hidden: Tensor, update: Tensor, modulation: Tensor, *rest: Any) -> list[int]:
    return _copies(hidden, update, modulation)


def _gated_modulated_norm(hidden: Tensor, update: Tensor, gates: Tensor, modulation: Tensor, *rest: Any) -> list[int]:
    return _copies(hidden, update, gates, modulation)


def _qk_norm_rope(qkv: Tensor, *rest: Any) -> list[int]:
    return _copies(qkv)


def _joint_attention(q: Tensor, *rest: Any) -> list[int]:
    """PyTorch's backends also give the logarithm of each row's sum, float32; our kernel needs nothing."""
    return [q.shape[0] * q.shape[1] * q.shape[2] * 4]


def _linear_gelu(x: Tensor, *rest: Any) -> list[int]:
    """A copy of x [B, S, C] where its rows are not evenly apart, as those of a piece of several samples."""
    even = x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1)
    return [] if even else [x.numel() * x.itemsize]


def _face_cross_attention(
    hidden: Tensor, keys: Tensor, values: Tensor, weight: Tensor, bias: Tensor, heads: int, text_length: int, eps: float
) -> list[int]:
    """Folded keys and two sums of each; mean and deviation of each row, and its attention."""
    batch, length, _ = hidden.shape
    samples, tokens, _ = keys.shape
    rows, folded = batch * (length - text_length), keys.numel() * keys.itemsize
    sums = samples * tokens * 4
    return [*_copies(hidden, keys, values), folded, sums, sums, rows * 4, rows * 4, rows * tokens * hidden.itemsize]


def _group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, *rest: Any) -> list[int]:
    """Copies where layouts differ; the statistics of chunks are small."""
    kept = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last_3d)
    found = [] if kept else [x.numel() * x.itemsize]
    return found + (_copies(scale, shift) if scale.stride() != shift.stride() else [])


WORKSPACES: Mapping[str, Callable[..., list[int]]] = {
    "qk_norm_rope": _qk_norm_rope,
    "modulated_norm": _modulated_norm,
    "gated_residual": _residual,
    "gated_modulated_norm": _gated_modulated_norm,
    "group_norm_silu": _group_norm_silu,
    "joint_attention": _joint_attention,
    "face_cross_attention": _face_cross_attention,
    "linear_gelu": _linear_gelu,
}


def workspace(operator: str, *args: Any) -> list[int]:
    """Bytes of what torch.ops.consisid.`operator` allocates on a GPU for its arguments and gives back."""
    return WORKSPACES[operator](*args) if operator in WORKSPACES else []
