"""The encoder of T5 v1.1, and of T5 (Raffel et al., arXiv:1910.10683), layer by layer, with transformers' names.

As in the reference pipeline there is no attention mask: padding is read like any token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configs import TextConfig


class _RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(self.weight.dtype)


def position_buckets(length: int, buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """Which learned bias a pair (query, key) reads, int64 [length, length]: exact up to a quarter of the buckets per
    direction, then logarithmic up to max_distance."""
    position = torch.arange(length, device=device)
    relative = position[None, :] - position[:, None]
    half = buckets // 2
    exact = half // 2
    distance = relative.abs()
    # Distances below `exact` never take this branch; the clamp keeps the logarithm finite.
    steps = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + steps.to(torch.long)).clamp(max=half - 1)
    return torch.where(relative > 0, half, 0) + torch.where(distance < exact, distance, far)


def _finite(x: Tensor) -> Tensor:
    """float16 overflows in T5-XXL; transformers clamps it to the largest numbers, and so do we."""
    if x.dtype is not torch.float16:
        return x
    largest = torch.finfo(x.dtype).max
    limit = torch.where(torch.isinf(x).any(), largest - 1000, largest)
    return torch.clamp(x, min=-limit, max=limit)


class TextEmbed(nn.Module):
    """Token ids int64 [B, T] -> hidden [B, T, d_model] and the position bias [1, H, T, T] that all layers share."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.buckets, self.max_distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        bias = nn.Embedding(self.buckets, config.num_heads)
        self.bias = nn.ModuleDict({"relative_attention_bias": bias})

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        buckets = position_buckets(ids.shape[1], self.buckets, self.max_distance, ids.device)
        return self.shared(ids), self.bias["relative_attention_bias"](buckets).permute(2, 0, 1)[None].contiguous()


class _SelfAttention(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.SelfAttention = nn.ModuleDict(
            {n: nn.Linear(config.d_model, inner, bias=False) for n in "qkv"}
            | {"o": nn.Linear(inner, config.d_model, bias=False)}
        )
        self.layer_norm = _RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        normed, parts = self.layer_norm(hidden), self.SelfAttention
        q, k, v = (parts[n](normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in "qkv")
        # T5 does not scale its scores.
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return hidden + parts["o"](out.transpose(1, 2).flatten(-2))


class _FeedForward(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.gated = config.feed_forward_proj == "gated-gelu"
        self.DenseReluDense = nn.ModuleDict(
            {
                n: nn.Linear(config.d_model, config.d_ff, bias=False)
                for n in (("wi_0", "wi_1") if self.gated else ("wi",))
            }
            | {"wo": nn.Linear(config.d_ff, config.d_model, bias=False)}
        )
        self.layer_norm = _RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        normed, parts = self.layer_norm(hidden), self.DenseReluDense
        if not self.gated:
            return hidden + parts["wo"](F.relu(parts["wi"](normed)))
        return hidden + parts["wo"](F.gelu(parts["wi_0"](normed), approximate="tanh") * parts["wi_1"](normed))


class TextLayer(nn.Module):
    """hidden [B, T, d_model], position bias [1, H, T, T] -> hidden."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.layer = nn.ModuleList([_SelfAttention(config), _FeedForward(config)])

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        hidden = _finite(self.layer[0](hidden, bias))
        return _finite(self.layer[1](hidden))


class TextNorm(nn.Module):
    """hidden [B, T, d_model] -> text embeddings [B, T, d_model]."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.final_layer_norm = _RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.final_layer_norm(hidden)
