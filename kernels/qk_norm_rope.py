"""Per-head LayerNorm of queries and keys, then rotary embedding of the video tokens (Su et al., arXiv:2104.09864)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[2i], x[2i+1]) of [B, V, H, D] by the angles whose cos and sin are [V, D/2], in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
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
    return reference(qkv, q_weight, q_bias, k_weight, k_bias, cos, sin, heads, eps)
