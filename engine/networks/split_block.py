"""A transformer block in the two parts around its attention, where tokens are spread over devices: what lies between
is between devices, and in no graph. Parameters are the whole block's, so that both take the weights of its call; those
of Between, for engines that hold their weights, are the ones that it reads.

Shapes as in transformer.py, with s tokens of one device, of which t are text, instead of S and T.
"""

from dataclasses import replace

from torch import Tensor, nn

from ..configs import TransformerConfig
from .transformer import Block, FaceAttention


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


class Between(nn.Module):
    """What lies between the joint attentions of two blocks: the end of the one, the face attention that follows it, and
    the beginning of the other.

    hidden [B, s, C], attention [B, s, C] before its output projection, modulation [2, 2, 2, 3, C] of both blocks, cos
    and sin [s - t, D / 2], then keys and values [1, H * N, C] where there is a face attention -> hidden [B, s, C], then
    q, k and v, each [B, s, H, D]. Before the first block there is no attention, and no hidden state comes out; behind
    the last there are no cos and sin, and only video tokens [B, s - t, C] come out. Modulation is of the blocks that
    there are.

    Args:
        layer: the block that begins here, 0 for the first, their number behind the last.
    """

    def __init__(self, config: TransformerConfig, text: int, layer: int):
        super().__init__()
        self.text, self.behind, self.before = text, str(layer - 1), str(layer)
        self.blocks = (layer > 0) + (layer < config.num_layers)
        self.transformer_blocks, self.perceiver_cross_attention = nn.ModuleDict(), nn.ModuleDict()
        if layer > 0:
            end = BlockOut(config, text)
            del end.norm1, end.attn1.to_qkv, end.attn1.norm_q, end.attn1.norm_k
            self.transformer_blocks[self.behind] = end
        if layer < config.num_layers:
            beginning = BlockIn(config, text)
            del beginning.norm2, beginning.ff, beginning.attn1.to_out
            self.transformer_blocks[self.before] = beginning
        face = config.face_index(layer - 1) if layer > 0 else None
        if face is not None:
            first = text if layer < config.num_layers else 0
            self.perceiver_cross_attention[str(face)] = FaceAttention(config, first)

    def forward(self, hidden: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        rest, found = list(given), []
        attention = rest.pop(0) if self.behind in self.transformer_blocks else None
        modulation = rest.pop(0)
        angles = [rest.pop(0), rest.pop(0)] if self.before in self.transformer_blocks else []
        if attention is not None:
            hidden = self.transformer_blocks[self.behind](hidden, attention, modulation[0])
            hidden = hidden if angles else hidden[:, self.text :].contiguous()
            for face in self.perceiver_cross_attention.values():
                hidden = face(hidden, *rest)
            found = [hidden]
        if angles:
            found += self.transformer_blocks[self.before](hidden, modulation[-1], *angles)
        return tuple(found)
