"""The facial extractors that run once per identity: the local facial extractor (diffusers LocalFacialExtractor, after
the perceiver of Jaegle et al., arXiv:2103.03206) and the folding of its tokens into the face attention's matrices."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configs import TransformerConfig


class _PerceiverAttention(nn.Module):
    def __init__(self, dim: int, head_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, head_dim * heads, bias=False)
        self.to_kv = nn.Linear(dim, 2 * head_dim * heads, bias=False)
        self.to_out = nn.Linear(head_dim * heads, dim, bias=False)

    def forward(self, context: Tensor, latents: Tensor) -> Tensor:
        context, latents = self.norm1(context), self.norm2(latents)
        q = self.to_q(latents)
        k, v = self.to_kv(torch.cat((context, latents), dim=1)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def _mapping(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.LayerNorm(width),
        nn.LeakyReLU(),
        nn.Linear(width, width),
        nn.LayerNorm(width),
        nn.LeakyReLU(),
        nn.Linear(width, outputs),
    )


class LocalFacialExtractor(nn.Module):
    """id_cond [1, 1280] and five hidden states [1, 577, vit_dim] -> face tokens [1, 32, output_dim]."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        c, width = config, config.LFE_vit_dim
        self.scales, self.depth = c.LFE_num_scale, c.LFE_depth // c.LFE_num_scale
        self.latents = nn.Parameter(torch.empty(1, c.LFE_num_querie, width))
        self.proj_out = nn.Parameter(torch.empty(width, c.LFE_output_dim))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _PerceiverAttention(width, c.LFE_dim_head, c.LFE_num_heads),
                    nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, width * c.LFE_ff_mult, bias=False),
                        nn.GELU(),
                        nn.Linear(width * c.LFE_ff_mult, width, bias=False),
                    ),
                ]
            )
            for _ in range(c.LFE_depth)
        )
        for i in range(self.scales):
            self.add_module(f"mapping_{i}", _mapping(width, width, width))
        self.id_embedding_mapping = _mapping(c.LFE_id_dim, width, width * c.LFE_num_id_token)

    def forward(self, id_cond: Tensor, *hidden_states: Tensor) -> Tensor:
        identity = self.id_embedding_mapping(id_cond).unflatten(-1, (-1, self.latents.shape[-1]))
        latents = torch.cat((self.latents.expand(id_cond.shape[0], -1, -1), identity), dim=1)
        for i, hidden in enumerate(hidden_states):
            context = torch.cat((identity, self.get_submodule(f"mapping_{i}")(hidden)), dim=1)
            for layer in range(i * self.depth, (i + 1) * self.depth):
                latents = self.get_submodule(f"layers.{layer}.0")(context, latents) + latents
                latents = self.get_submodule(f"layers.{layer}.1")(latents) + latents
        return latents[:, : self.latents.shape[1]] @ self.proj_out


class FaceFold(nn.Module):
    """Face tokens [b, N, kv_dim] -> keys and values [b, H * N, C] for kernels.face_cross_attention.

    The products are float32 whatever the dtype of the weights: they run once, and are rounded once.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads, head_dim = config.cross_attn_num_heads, config.cross_attn_dim_head
        inner, kv_dim = self.heads * head_dim, config.LFE_output_dim
        self.scale, self.strength = head_dim**-0.5, config.local_face_scale
        self.norm1 = nn.LayerNorm(kv_dim)
        self.to_q = nn.Linear(config.inner_dim, inner, bias=False)
        self.to_kv = nn.Linear(kv_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.inner_dim, bias=False)

    def forward(self, face_tokens: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.to_kv(self.norm1(face_tokens)).chunk(2, dim=-1)
        k, v = (x.float().unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (k, v))  # [b, H, N, D]
        to_q = self.to_q.weight.float().unflatten(0, (self.heads, -1))  # [H, D, C]
        to_out = self.to_out.weight.float().T.unflatten(0, (self.heads, -1))  # [H, D, C]
        keys = (self.scale * k @ to_q).flatten(1, 2)
        values = (self.strength * v @ to_out).flatten(1, 2)
        return keys.to(face_tokens.dtype), values.to(face_tokens.dtype)
