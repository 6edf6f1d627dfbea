"""Attention of the video tokens to the identity tokens of a face, with everything that depends only on the identity
folded into two matrices.

The reference (diffusers PerceiverCrossAttention) computes, for normalised rows x and identity tokens f,
softmax(x Wq (f Wk)^T s) (f Wv) Wo. Matrix products are associative, so per head K = s Wq (f Wk)^T and V = (f Wv) Wo
are computed once per identity (export: FaceFold) and the loop multiplies by [C, H * N] and [H * N, C] instead of
[C, H * D] and [H * D, C]: with N = 32 tokens and D = 128 that is a quarter of the arithmetic, and Wq, Wo never have
to be on the device during the loop.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(
    hidden: Tensor, keys: Tensor, values: Tensor, weight: Tensor, bias: Tensor, heads: int, text_length: int, eps: float
) -> Tensor:
    text, video = hidden.split((text_length, hidden.shape[1] - text_length), dim=1)
    normed = F.layer_norm(video, weight.shape, weight, bias, eps)
    scores = (normed @ keys.transpose(-1, -2)).unflatten(-1, (heads, -1))  # [B, V, H, N]
    attention = scores.float().softmax(-1).to(hidden.dtype).flatten(-2)
    return torch.cat((text, video + attention @ values), dim=1)


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
    return reference(hidden, keys, values, weight, bias, heads, text_length, eps)
