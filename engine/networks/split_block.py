"""A transformer block in the two parts around its attention, where tokens are spread over devices: what lies between
is between devices, and in no graph. Parameters are the whole block's, so that both take the weights of its call.

Shapes as in transformer.py, with s tokens of one device, of which t are text, instead of S and T.
"""

from dataclasses import replace

from torch import Tensor

from ..configs import TransformerConfig
from .transformer import Block


class BlockIn(Block):
    """hidden [B, s, C], modulation [2, 2, 3, C], cos and sin [s - t, D / 2] -> q, k and v, each [B, s, H, D]."""

    def __init__(self, config: TransformerConfig, text: int):
        super().__init__(replace(config, max_text_seq_length=text))

    def forward(self, hidden: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        q, k, v = self.attn1.queries(self.qkv(hidden, modulation), cos, sin)
        return q, k, v.contiguous()


class BlockOut(Block):
    """hidden [B, s, C], attention [B, s, C] before its output projection, modulation [2, 2, 3, C] -> hidden [B, s, C].

    Args:
        rows: pieces that the feed-forward works through one after the other.
    """

    def __init__(self, config: TransformerConfig, text: int, rows: int = 1):
        super().__init__(replace(config, max_text_seq_length=text), rows)

    def forward(self, hidden: Tensor, attention: Tensor, modulation: Tensor) -> Tensor:  # type: ignore[override]
        return self.after(hidden, attention, modulation)
