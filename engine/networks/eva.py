"""The EVA02-CLIP vision tower (Sun et al., arXiv:2303.15389) as ConsisID uses it: the projected CLS token and the
hidden states that enter five blocks.

Parameter names are those of the checkpoint EVA02_CLIP_L_336_psz14_s6B.pt below `visual.`; its rotary tables
(`rope.freqs_*`, repeated in every block) are computed here and ignored there.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = (4, 8, 12, 16, 20)  # the hidden states that enter these blocks are returned
EPS = 1e-6  # of every LayerNorm; PyTorch's default is 1e-5


def rotary_table(size: int, rope_size: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin for a grid of patches.

    Positions are those of the pre-training grid (`rope_size` a side), interpolated to `size` a side: the tower was
    trained at 224 pixels and brought to 336 this way. The first half of a head turns with the row, the second with the
    column, in pairs of neighbouring channels.

    Returns:
        cos, sin: [size * size, head_width], float32.
    """
    half = head_width // 2
    frequencies = 1.0 / 10000 ** (torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    position = torch.arange(size, device=device, dtype=torch.float32) / size * rope_size
    angle = (position[:, None] * frequencies).repeat_interleave(2, dim=1)  # [size, half]
    rows = angle[:, None].expand(size, size, half)
    columns = angle[None, :].expand(size, size, half)
    grid = torch.cat((rows, columns), dim=-1).reshape(size * size, head_width)
    return grid.cos(), grid.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the patches of x [B, heads, 1 + patches, head_width]; the CLS token in front has no position."""
    cls, patches = x[:, :, :1], x[:, :, 1:]
    even, odd = patches.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return torch.cat((cls, patches * cos + turned * sin), dim=2)


class Attention(nn.Module):
    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        # The checkpoint keeps the biases apart from the projections, and there is none for the keys.
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.inner_attn_ln = nn.LayerNorm(width, eps=EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = self.heads(F.linear(x, self.q_proj.weight, self.q_bias))
        k = self.heads(self.k_proj(x))
        v = self.heads(F.linear(x, self.v_proj.weight, self.v_bias))
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.proj(self.inner_attn_ln(out.transpose(1, 2).flatten(2)))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)  # [B, heads, S, head_width]


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=EPS)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, head_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, head_width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)  # [B, patches, width], row by row


class EvaTower(nn.Module):
    """The tower. EVA02-CLIP-L-14-336 is width 1024, 24 layers, mlp_hidden 2730.

    Args:
        width: of the tokens; a multiple of head_width.
        layers: at least 21, so that every tap exists.
        mlp_hidden: width inside the SwiGLU.
        image_size: pixels a side; a multiple of patch_size.
        patch_size: pixels a side of a patch.
        rope_size: patches a side that the rotary positions were trained on (224 / 14).
        embed_dim: width of the projected CLS token.
        head_width: channels of an attention head.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        mlp_hidden: int,
        image_size: int = 336,
        patch_size: int = 14,
        rope_size: int = 16,
        embed_dim: int = 768,
        head_width: int = 64,
    ) -> None:
        super().__init__()
        self.grid = image_size // patch_size
        self.rope_size = rope_size
        self.head_width = head_width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2 + 1, width))
        self.patch_embed = PatchEmbed(width, patch_size)
        self.blocks = nn.ModuleList(Block(width, mlp_hidden, head_width) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, embed_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Args: image: [B, 3, image_size, image_size], normalised (face_preprocess.eva_input).

        Returns:
            The projected CLS token [B, embed_dim], not normalised, and the hidden states entering blocks 4, 8, 12, 16
            and 20, each [B, 1 + patches, width].
        """
        cos, sin = rotary_table(self.grid, self.rope_size, self.head_width, image.device)
        cos, sin = cos.to(image.dtype), sin.to(image.dtype)
        x = self.patch_embed(image)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        taps = []
        for index, block in enumerate(self.blocks):
            if index in TAPS:
                taps.append(x)
            x = block(x, cos, sin)
        h0, h1, h2, h3, h4 = taps
        return self.head(self.norm(x[:, 0])), h0, h1, h2, h3, h4


def eva_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tower's own tensors from the CLIP checkpoint: below `visual.`, without the rotary tables."""
    prefix = "visual."
    return {
        key.removeprefix(prefix): value
        for key, value in checkpoint.items()
        if key.startswith(prefix) and ".rope." not in f".{key}"
    }


def eva_arguments(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The arguments of EvaTower that fit the tensors of `eva_state`; KeyError where it is none of this tower's."""
    width, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    patches = state["pos_embed"].shape[1] - 1
    return {
        "width": width,
        "layers": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        "mlp_hidden": state["blocks.0.mlp.w1.weight"].shape[0],
        "image_size": round(patches**0.5) * patch_size,
        "patch_size": patch_size,
        "embed_dim": state["head.weight"].shape[0],
    }
