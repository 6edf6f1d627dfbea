"""The diffusion transformer, cut where the denoising loop wants it cut.

Parameter names are those of diffusers' ConsisIDTransformer3DModel, with one exception: to_q, to_k and to_v of the
self-attention are one matrix, to_qkv, as in diffusers' fuse_qkv_projections.

Shapes: B samples, T text tokens, V video tokens, S = T + V, C channels, F latent frames, h x w latent pixels; a patch
is d latent frames of p x p latent pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consisid.kernels import (
    face_cross_attention,
    gated_modulated_norm,
    gated_residual,
    joint_attention,
    linear_gelu,
    modulated_norm,
    qk_norm_rope,
)

from ..configs import TransformerConfig

QK_NORM_EPS = 1e-6  # fixed in diffusers' ConsisIDBlock, whatever norm_eps says
OFS = 2.0  # the value that CogVideoX-1.5's image-to-video models are given in every step
FACE_NORM_EPS = 1e-5  # nn.LayerNorm's default, used by PerceiverCrossAttention


def timestep_embedding(timesteps: Tensor, dim: int, flip_sin_to_cos: bool, freq_shift: int) -> Tensor:
    """Sinusoids [N, dim] in float32 of timesteps [N] (Ho et al., arXiv:2006.11239)."""
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - freq_shift)
    angles = timesteps[:, None].float() * exponent.exp()
    pair = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return F.pad(torch.cat(pair, dim=-1), (0, dim % 2))  # an odd one ends with a zero


def _embedding(inputs: int, outputs: int) -> nn.ModuleDict:
    """diffusers' TimestepEmbedding."""
    return nn.ModuleDict({"linear_1": nn.Linear(inputs, outputs), "linear_2": nn.Linear(outputs, outputs)})


class TimeEmbedding(nn.Module):
    """Timesteps [N] -> what every adaptive norm reads, silu(temb) [N, D]; the `ofs` embedding, where there is one, is
    part of temb."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.time_embedding = _embedding(config.inner_dim, config.time_embed_dim)
        if config.ofs_embed_dim:
            self.ofs_embedding = _embedding(config.ofs_embed_dim, config.ofs_embed_dim)

    def forward(self, timesteps: Tensor) -> Tensor:
        return F.silu(self.embed(timesteps))

    def embed(self, timesteps: Tensor) -> Tensor:
        """temb [N, D]."""
        temb = self._embed(self.time_embedding, timesteps, self.config.inner_dim)
        if self.config.ofs_embed_dim:
            ofs = torch.full_like(timesteps[:1], OFS)
            temb = temb + self._embed(self.ofs_embedding, ofs, self.config.ofs_embed_dim)
        return temb

    def _embed(self, layers: nn.ModuleDict, values: Tensor, dim: int) -> Tensor:  # [N] -> [N, D]
        sinusoids = timestep_embedding(values, dim, self.config.flip_sin_to_cos, self.config.freq_shift)
        return layers["linear_2"](F.silu(layers["linear_1"](sinusoids.to(next(self.parameters()).dtype))))


class Modulation(nn.Module):
    """silu(temb) [N, D] -> the shifts, scales and gates of one block, [N, 2 norms, 2 (video, text), 3, C]."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        out = 6 * config.inner_dim
        self.norm1 = nn.ModuleDict({"linear": nn.Linear(config.time_embed_dim, out)})
        self.norm2 = nn.ModuleDict({"linear": nn.Linear(config.time_embed_dim, out)})

    def forward(self, temb: Tensor) -> Tensor:
        rows = torch.stack((self.norm1["linear"](temb), self.norm2["linear"](temb)), dim=1)
        return rows.unflatten(-1, (2, 3, -1))


class OutModulation(nn.Module):
    """silu(temb) [N, D] -> shift and scale of the last norm, [N, 2, C]."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm_out = nn.ModuleDict({"linear": nn.Linear(config.time_embed_dim, 2 * config.inner_dim)})

    def forward(self, temb: Tensor) -> Tensor:
        return self.norm_out["linear"](temb).unflatten(-1, (2, -1))


class TextProjection(nn.Module):
    """Text embeddings [B, T, 4096] -> text tokens [B, T, C]."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"text_proj": nn.Linear(config.text_embed_dim, config.inner_dim)})

    def forward(self, prompt_embeds: Tensor) -> Tensor:
        return self.patch_embed["text_proj"](prompt_embeds)


class _Projection(nn.Module):
    """patch_embed of the checkpoint, without the text's share."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        size, channels = config.patch_size, config.in_channels
        self.proj: nn.Linear | nn.Conv2d
        if config.patch_size_t is None:
            self.proj = nn.Conv2d(channels, config.inner_dim, size, size, bias=config.patch_bias)
        else:  # with a bias whatever patch_bias says, as diffusers' CogVideoXPatchEmbed has it
            self.proj = nn.Linear(channels * config.patch_channels, config.inner_dim)


class _PatchEmbed(nn.Module):
    """A half of the patch embedding, a matrix product over patches: a linear layer, or a convolution whose stride is
    its kernel."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.patch_frames, self.size = config.patch_frames, config.patch_size
        self.share = config.in_channels // 2 * config.patch_channels
        self.patch_embed = _Projection(config)

    def patches(self, latents: Tensor) -> Tensor:  # [B, F, 16, h, w] -> [B, V, 16 * d * p * p]
        batch, frames, channels, height, width = latents.shape
        depth, rows, columns = frames // self.patch_frames, height // self.size, width // self.size
        cut = latents.reshape(batch, depth, self.patch_frames, channels, rows, self.size, columns, self.size)
        return cut.permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(batch, depth * rows * columns, -1)


class ImageEmbed(_PatchEmbed):
    """Image latents [b, F, 16, h, w] -> their share of the video tokens [b, V, C], bias included: once per video."""

    def forward(self, image_latents: Tensor) -> Tensor:
        proj = self.patch_embed.proj
        return F.linear(self.patches(image_latents), proj.weight.flatten(1)[:, self.share :], proj.bias)


class Embed(_PatchEmbed):
    """Noisy latents [b, F, 16, h, w] and image tokens [b, V, C] -> video tokens [b, V, C]."""

    def forward(self, latents: Tensor, image_tokens: Tensor) -> Tensor:
        patches = self.patches(latents)
        weight = self.patch_embed.proj.weight.flatten(1)[:, : self.share].T.expand(patches.shape[0], -1, -1)
        # baddbmm adds in the accumulator, before the one rounding to bf16 that the whole convolution would have had.
        return torch.baddbmm(image_tokens, patches, weight)


class _Attention(nn.Module):
    """The parameters of a self-attention over all tokens."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        dim, head_dim = config.inner_dim, config.attention_head_dim
        self.heads = config.num_attention_heads
        self.norm_q = nn.LayerNorm(head_dim, QK_NORM_EPS)
        self.norm_k = nn.LayerNorm(head_dim, QK_NORM_EPS)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=config.attention_bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def queries(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each [B, S, H, D], of [B, S, 3 * C] from the fused projection."""
        q, k = qk_norm_rope(
            qkv, self.norm_q.weight, self.norm_q.bias, self.norm_k.weight, self.norm_k.bias,
            cos, sin, self.heads, QK_NORM_EPS,
        )  # fmt: skip
        return q, k, qkv.unflatten(-1, (3, self.heads, -1))[:, :, 2]

    def forward(self, qkv: Tensor, cos: Tensor, sin: Tensor, skip: int = 0) -> Tensor:
        """Attention of [B, S, 3 * C], from the fused projection -> [B, S - skip, C] before the output projection: the
        first `skip` tokens are read but not asked."""
        q, k, v = self.queries(qkv, cos, sin)
        return joint_attention(q[:, skip:], k, v, q.shape[-1] ** -0.5).flatten(-2)


class _Norm(nn.Module):
    """The LayerNorm of an adaptive norm, which diffusers keeps below `norm`."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)


class _FeedForward(nn.Module):
    """Row by row the same; in `rows` pieces of the tokens, so that the wide rows of one piece exist at a time."""

    def __init__(self, dim: int, rows: int):
        super().__init__()
        self.rows = rows
        # Positions 0 and 2 of diffusers' FeedForward.net; 1 is its dropout.
        self.net = nn.ModuleDict({"0": nn.ModuleDict({"proj": nn.Linear(dim, 4 * dim)}), "2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor) -> Tensor:  # [B, S, C] -> [B, S, C]
        if self.rows == 1:
            return self._piece(x)
        out = torch.empty_like(x)
        for piece, place in zip(x.tensor_split(self.rows, 1), out.tensor_split(self.rows, 1), strict=True):
            place.copy_(self._piece(piece))
        return out

    def _piece(self, x: Tensor) -> Tensor:
        proj = self.net["0"]["proj"]  # type: ignore[index]
        return self.net["2"](linear_gelu(x, proj.weight, proj.bias))


class Block(nn.Module):
    """One transformer block: hidden [B, S, C], modulation [2, 2, 3, C], cos and sin [V, D / 2] -> hidden [B, S, C].

    Tensors as large as the hidden state are named only as long as they are read: what a block holds at once decides
    which budgets of device memory it runs in.

    Args:
        rows: pieces that the feed-forward works through one after the other.
    """

    def __init__(self, config: TransformerConfig, rows: int = 1):
        super().__init__()
        dim = config.inner_dim
        self.text_length = config.max_text_seq_length
        self.eps = config.norm_eps
        self.norm1 = _Norm(dim, self.eps)
        self.attn1 = _Attention(config)
        self.norm2 = _Norm(dim, self.eps)
        self.ff = _FeedForward(dim, rows)

    def forward(self, hidden: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self._run(hidden, modulation, cos, sin, skip=0)

    def _run(self, hidden: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor, skip: int) -> Tensor:
        return self.after(hidden[:, skip:], self.attn1(self.qkv(hidden, modulation), cos, sin, skip), modulation, skip)

    def qkv(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """The fused projection [B, S, 3 * C] that attention begins with."""
        norm = self.norm1.norm
        normed = modulated_norm(hidden, modulation[0], norm.weight, norm.bias, self.text_length, self.eps)
        return self.attn1.to_qkv(normed)

    def after(self, hidden: Tensor, attended: Tensor, modulation: Tensor, skip: int = 0) -> Tensor:
        """What follows attention, of hidden and attended [B, S - skip, C] -> [B, S - skip, C]."""
        attention_mod, ff_mod = modulation[0], modulation[1]
        attention = self.attn1.to_out[0](attended)
        del attended
        norm, text = self.norm2.norm, self.text_length - skip
        hidden, normed = gated_modulated_norm(
            hidden, attention, attention_mod, ff_mod, norm.weight, norm.bias, text, self.eps
        )
        del attention
        update = self.ff(normed)
        del normed
        return gated_residual(hidden, update, ff_mod, text)


class LastBlock(Block):
    """The last block keeps only the video tokens: nothing reads the text after it. -> [B, V, C]"""

    def forward(self, hidden: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self._run(hidden, modulation, cos, sin, skip=self.text_length)


class FaceAttention(nn.Module):
    """What follows a block: hidden [B, S, C], folded keys and values [b, H * N, C] -> hidden [B, S, C]."""

    def __init__(self, config: TransformerConfig, text_length: int):
        super().__init__()
        self.heads, self.text_length = config.cross_attn_num_heads, text_length
        self.norm2 = nn.LayerNorm(config.inner_dim, FACE_NORM_EPS)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return face_cross_attention(
            hidden, keys, values, self.norm2.weight, self.norm2.bias, self.heads, self.text_length, FACE_NORM_EPS
        )


class Head(nn.Module):
    """Video tokens [B, V, C], out modulation [2, C] -> the predicted noise [B, F, 16, h, w]."""

    def __init__(self, config: TransformerConfig, latent_height: int, latent_width: int):
        super().__init__()
        dim, self.eps = config.inner_dim, config.norm_eps
        self.patch_frames, self.size = config.patch_frames, config.patch_size
        self.rows, self.columns = latent_height // self.size, latent_width // self.size
        self.norm_final = nn.LayerNorm(dim, self.eps)
        self.norm_out = _Norm(dim, self.eps)
        self.proj_out = nn.Linear(dim, config.patch_channels * config.out_channels)

    def forward(self, video: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation[0], modulation[1]
        video = self.norm_out.norm(self.norm_final(video)) * (1 + scale) + shift
        cut = self.proj_out(video).unflatten(-1, (-1, self.patch_frames, self.size, self.size))
        cut = cut.unflatten(1, (-1, self.rows, self.columns))  # [B, F / d, rows, columns, 16, d, p, p]
        return cut.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(1, 2)
