"""How the graphs of the transformer follow each other in a denoising step, for engines with a graph per layer.

What runs them is given: an executor with weights, or one that only counts what they allocate.
"""

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from ..configs import TransformerConfig

Call = Callable[..., Tensor]
"""call(graph, *inputs, layer=0) -> the graph's only output."""


def join_tokens(text: Tensor, video: Tensor) -> Tensor:
    """Text tokens [G * b, T, C] and video tokens [b, V, C], the same for each of the G halves of guidance, as one
    hidden state [G * b, T + V, C]."""
    groups = text.shape[0] // video.shape[0]
    return torch.cat((text, video.expand(groups, *video.shape).flatten(0, 1) if groups > 1 else video), dim=1)


def blocks(
    call: Call, config: TransformerConfig, tokens: list[Tensor], modulation: Tensor, cos: Tensor, sin: Tensor,
    keys: Sequence[Tensor], values: Sequence[Tensor], put: Callable[[Tensor], Tensor] = lambda hidden: hidden,
    begun: bool = False,
) -> Generator[None, None, Tensor]:  # fmt: skip
    """Video tokens [B, V, C] after all blocks and the face attentions between them. It stops after every call, so that
    others can make the same call before the next one.

    Args:
        tokens: one hidden state [B, S, C], which is taken out: nobody keeps it while later blocks run.
        modulation: [layers, 2, 2, 3, C].
        keys, values: of each face attention.
        put: where the hidden state is while others make their call.
        begun: the first block has run already, not what follows it.
    """
    hidden, last = tokens.pop(), config.num_layers - 1
    for layer in range(last):
        if layer or not begun:
            hidden = put(call("block", hidden, modulation[layer], cos, sin, layer=layer))
            yield
        face = config.face_index(layer)
        if face is not None:
            hidden = put(call("face", hidden, keys[face], values[face], layer=face))
            yield
    hidden = put(call("last_block", hidden, modulation[last], cos, sin))
    if config.face_index(last) is not None:
        yield
        hidden = put(call("last_face", hidden, keys[-1], values[-1]))
    return hidden


def in_turn(work: Sequence[Generator[None, None, Tensor]]) -> list[Tensor]:
    """What comes of several pieces of work, which make a call each at a time."""
    found, going = dict[int, Tensor](), dict(enumerate(work))
    while going:
        for index in list(going):
            try:
                next(going[index])
            except StopIteration as end:
                found[index] = end.value
                del going[index]
    return [found[index] for index in sorted(found)]
