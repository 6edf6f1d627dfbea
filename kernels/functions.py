"""What the networks call: each function is the kernel's operator on a GPU, and its reference elsewhere.

Operators are imported when one is first called: see ops.py.
"""

from torch import Tensor

from ._triton import runs
from .face_cross_attention import reference as face_cross_attention_reference
from .face_cross_attention import supported as face_cross_attention_supported
from .group_norm_silu import reference as group_norm_silu_reference
from .group_norm_silu import whole_ratios
from .joint_attention import reference as joint_attention_reference
from .linear_gelu import reference as linear_gelu_reference
from .linear_gelu import runs as linear_gelu_runs
from .modulated_norm import reference_both, reference_norm, reference_residual
from .qk_norm_rope import reference as qk_norm_rope_reference


def qk_norm_rope(
    qkv: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor,
    cos: Tensor, sin: Tensor, heads: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Queries and keys ready for attention, from the buffer of a fused q, k, v projection.

    Args:
        qkv: [B, S, 3 * H * D], the text tokens first.
        q_weight, q_bias, k_weight, k_bias: [D], the LayerNorms shared by all heads.
        cos, sin: [V, D / 2] float32. The last V tokens are rotated; with V = 0 none is.
        heads: H.
        eps: of the LayerNorms.

    Returns:
        q and k, each [B, S, H, D] in qkv's dtype.
    """
    if runs(qkv):
        from . import ops

        return ops.qk_norm_rope(qkv, q_weight, q_bias, k_weight, k_bias, cos, sin, heads, eps)
    return qk_norm_rope_reference(qkv, q_weight, q_bias, k_weight, k_bias, cos, sin, heads, eps)


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
    if runs(hidden):
        from . import ops

        return ops.modulated_norm(hidden, modulation, weight, bias, text_length, eps)
    return reference_norm(hidden, modulation, weight, bias, text_length, eps)


def gated_residual(hidden: Tensor, update: Tensor, modulation: Tensor, text_length: int) -> Tensor:
    """hidden + gate * update; shapes as in modulated_norm, update is [B, S, C]."""
    if runs(hidden):
        from . import ops

        return ops.gated_residual(hidden, update, modulation, text_length)
    return reference_residual(hidden, update, modulation, text_length)


def gated_modulated_norm(
    hidden: Tensor, update: Tensor, gate_modulation: Tensor, modulation: Tensor,
    weight: Tensor, bias: Tensor, text_length: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """gated_residual with the gate of gate_modulation, then modulated_norm of its result, in one pass over memory.

    Returns:
        The new hidden state and its modulated norm, each [B, S, C].
    """
    if runs(hidden):
        from . import ops

        return ops.gated_modulated_norm(hidden, update, gate_modulation, modulation, weight, bias, text_length, eps)
    return reference_both(hidden, update, gate_modulation, modulation, weight, bias, text_length, eps)


def joint_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Non-causal attention of every query to every key; no mask.

    Args:
        q: [B, Sq, H, D], any strides with a contiguous last dimension.
        k: [B, S, H, D], the same dtype as q.
        v: [B, S, H, D].
        scale: factor on the scores, usually D ** -0.5.

    Returns:
        [B, Sq, H, D] in q's dtype. Accumulated in float32.
    """
    if runs(q):
        from . import ops

        return ops.joint_attention(q, k, v, scale)
    return joint_attention_reference(q, k, v, scale)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(x @ weight^T + bias), tanh form.

    Args:
        x: [..., K].
        weight: [N, K].
        bias: [N].

    Returns:
        [..., N] in x's dtype; on a CPU with the bits of the two operators.
    """
    if linear_gelu_runs(x):
        from . import ops

        return ops.linear_gelu(x, weight, bias)
    return linear_gelu_reference(x, weight, bias)


def face_cross_attention(
    hidden: Tensor, keys: Tensor, values: Tensor, weight: Tensor, bias: Tensor, heads: int, text_length: int, eps: float
) -> Tensor:
    """Add to the video rows what they read from the face; the text rows pass unchanged.

    Args:
        hidden: [B, S, C], the first text_length rows are text.
        keys: [b, H * N, C] with b = 1 or B, scale included.
        values: [b, H * N, C], strength of the face (local_face_scale) included.
        weight, bias: [C], of the LayerNorm on the video rows.
        heads: H.
        text_length: how many of the first rows are text.
        eps: of the LayerNorm.

    Returns:
        [B, S, C] in hidden's dtype. The softmax is float32.
    """
    if runs(hidden) and face_cross_attention_supported(hidden, keys, heads, text_length):
        from . import ops

        return ops.face_cross_attention(hidden, keys, values, weight, bias, heads, text_length, eps)
    return face_cross_attention_reference(hidden, keys, values, weight, bias, heads, text_length, eps)


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, lead: int = 0,
    before: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """silu(GroupNorm(x) * upsample(scale) + upsample(shift)), behind `lead` other frames.

    Args:
        x: [B, C, F, H, W]. The statistics are over a group's channels and all of F, H, W.
        weight, bias: [C], of the GroupNorm.
        scale, shift: [B, C, f, h, w], the conditioning at the size of the latents.
        groups: of the GroupNorm; divides C.
        eps: of the GroupNorm.
        lead: frames of the result in front of those of x.
        before: [B, C, lead, H, W], what they are; None for the first frame's result, repeated.

    Returns:
        [B, C, lead + F, H, W] in x's dtype and memory format. Statistics in float32.
    """
    if runs(x) and whole_ratios(x.shape[2:], scale.shape[2:]):
        from . import ops

        return ops.group_norm_silu(x, weight, bias, scale, shift, groups, eps, lead, before)
    return group_norm_silu_reference(x, weight, bias, scale, shift, groups, eps, lead, before)
