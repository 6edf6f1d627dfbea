"""Several consecutive layers as one graph, for engines that hold their weights: parameters have the checkpoint's names.

Shapes as in transformer.py and text.py; E face attentions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..configs import TextConfig, TransformerConfig
from .facial import FaceFold
from .t5 import TextLayer
from .transformer import Block, FaceAttention, LastBlock, Modulation


class Trunk(nn.Module):
    """Some transformer blocks and the face attentions that follow them.

    hidden [B, S, C], modulation [blocks, 2, 2, 3, C], cos and sin [V, D / 2], then keys and values [1, H * N, C] of
    each face attention -> hidden [B, S, C]; with the last block of all, [B, V, C].
    """

    def __init__(self, config: TransformerConfig, layers: Sequence[int]):
        super().__init__()
        self.config, self.layers, last = config, tuple(layers), config.num_layers - 1
        self.transformer_blocks = nn.ModuleDict(
            {str(i): LastBlock(config) if i == last else Block(config) for i in layers}
        )
        self.perceiver_cross_attention = nn.ModuleDict(
            {
                str(face): FaceAttention(config, 0 if i == last else config.max_text_seq_length)
                for i in layers
                if (face := config.face_index(i)) is not None
            }
        )

    def forward(self, hidden: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor, *faces: Tensor) -> Tensor:
        given = iter(faces)
        for place, layer in enumerate(self.layers):
            hidden = self.transformer_blocks[str(layer)](hidden, modulation[place], cos, sin)
            face = self.config.face_index(layer)
            if face is not None:
                hidden = self.perceiver_cross_attention[str(face)](hidden, next(given), next(given))
        return hidden


class TextLayers(nn.Module):
    """Some layers of the text encoder: hidden [B, T, d_model], position bias [1, H, T, T] -> hidden."""

    def __init__(self, config: TextConfig, layers: Sequence[int]):
        super().__init__()
        self.encoder = nn.ModuleDict({"block": nn.ModuleDict({str(i): TextLayer(config) for i in layers})})

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        for layer in self.encoder["block"].children():
            hidden = layer(hidden, bias)
        return hidden


class Modulations(nn.Module):
    """silu(temb) [N, D] -> the adaptive norms of all blocks, [N, layers, 2, 2, 3, C]."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(Modulation(config) for _ in range(config.num_layers))

    def forward(self, temb: Tensor) -> Tensor:
        return torch.stack([block(temb) for block in self.transformer_blocks], dim=1)


class FaceFolds(nn.Module):
    """Face tokens [1, N, kv_dim] -> keys and values [1, H * N, C] of the first face attention, of the second, ..."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.perceiver_cross_attention = nn.ModuleList(FaceFold(config) for _ in range(config.num_cross_attn))

    def forward(self, face_tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for fold in self.perceiver_cross_attention for x in fold(face_tokens))
