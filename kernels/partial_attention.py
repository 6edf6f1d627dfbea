"""Attention over a part of the keys, with what is needed to add the other parts (Milakov and Gimelshein,
arXiv:1805.02867; Liu et al., arXiv:2310.01889): the sum of the weights, as its logarithm.

On a GPU it is PyTorch's FlashAttention or memory-efficient attention, whose operators give that logarithm; only devices
whose number does not divide the heads need this, so there is no kernel of ours.
"""

import torch
from torch import Tensor

from ._triton import whole_calls


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [B, Q, H, D], k and v [B, K, H, D] -> softmax(q k^T scale) v, float32 [B, Q, H, D], and the logarithm of the
    softmax's denominator, float32 [B, Q, H]."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * scale
    total = scores.logsumexp(dim=-1)
    out = torch.einsum("bhqk,bkhd->bqhd", (scores - total[..., None]).exp_(), v.float())
    return out, total.transpose(1, 2)


def partial_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """As `reference`; out in q's dtype on a GPU."""
    if not (q.is_cuda or whole_calls()):
        return reference(q, k, v, scale)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    operators = torch.ops.aten
    if q.dtype is torch.float32:  # which FlashAttention does not take
        out, total = operators._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)[:2]
    else:
        out, total = operators._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]
    return out.transpose(1, 2), total[:, :, : q.shape[2]].transpose(1, 2)  # rows may be padded


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over two parts of the keys together; out in float32."""
    total = torch.logaddexp(one[1], other[1])
    out = sum(part[0].float() * (part[1] - total).exp()[..., None] for part in (one, other))
    assert isinstance(out, Tensor)
    return out, total
