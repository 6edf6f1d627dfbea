"""Attention over text and video tokens together (Dao et al., FlashAttention, arXiv:2205.14135)."""

import torch.nn.functional as F
from torch import Tensor


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T scale) v by PyTorch's scaled_dot_product_attention."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


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
    return reference(q, k, v, scale)
