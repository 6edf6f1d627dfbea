"""The graphs of a denoising step where tokens are spread over devices: all of one shape, whichever device runs them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from ..networks.split_block import Between, BlockIn, BlockOut
from ..networks.transformer import FaceAttention
from ..shapes import VideoShape
from ..variants import Variant
from .graph import Graph, Spec
from .table import graph_table

PARTS = {"block": ("spread_in", "spread_out"), "last_block": ("spread_in", "spread_out")}
"""Of what is cut at its attention: the graphs before and behind it."""

LOCAL = {"face": "spread_face", "last_face": "spread_last_face"}
"""Of what needs its own tokens only: the graph for these."""

BETWEEN = "between"
"""What the graphs between two joint attentions are called, with the block that begins in each."""


def spread_table(variant: Variant, shape: VideoShape, parts: int) -> dict[str, Graph]:
    """Graphs for devices of which each has 1 / `parts` of the tokens, rounded up. Each takes the weights of the graph
    of graph_table that it stands for."""
    t, table = variant.transformer, graph_table(variant, shape)
    text, video = -(-t.max_text_seq_length // parts), -(-shape.video_tokens // parts)
    stream = dict(table["last_block"].inputs)
    hidden = Spec(("B", text + video, t.inner_dim))
    heads = Spec(("B", text + video, t.inner_dim))
    angles = replace(stream["cos"], shape=(video if stream["cos"].shape[0] else 0, stream["cos"].shape[1]))
    inputs: Mapping[str, Spec] = stream | {"hidden": hidden, "cos": angles, "sin": angles}
    found = {
        "spread_in": replace(
            table["last_block"], make=partial(BlockIn, t, text), inputs=inputs, streams=False, chunked=False
        ),
        "spread_out": replace(
            table["last_block"], make=partial(BlockOut, t, text), streams=False,
            inputs={"hidden": hidden, "attention": heads, "modulation": stream["modulation"]},
        ),
    }  # fmt: skip
    for name, tokens, first in (("face", text + video, text), ("last_face", video, 0)):
        if name in table:
            given = dict(table[name].inputs) | {"hidden": Spec(("B", tokens, t.inner_dim))}
            found[LOCAL[name]] = replace(table[name], make=partial(FaceAttention, t, first), inputs=given)
    return {name: replace(graph, name=name, grouped=False) for name, graph in found.items()}


def spread_groups(variant: Variant, shape: VideoShape, parts: int) -> dict[str, Graph]:
    """spread_table for engines that hold their weights: a graph for all that lies between two joint attentions."""
    t, table = variant.transformer, spread_table(variant, shape, parts)
    given, face = table["spread_in"].inputs, table.get("spread_face")
    text, found = -(-t.max_text_seq_length // parts), {}
    for layer in range(t.num_layers + 1):
        inputs = {"hidden": given["hidden"]}
        if layer > 0:
            inputs["attention"] = given["hidden"]
        inputs["modulation"] = Spec((2 if 0 < layer < t.num_layers else 1, *given["modulation"].shape))
        if layer < t.num_layers:
            inputs |= {"cos": given["cos"], "sin": given["sin"]}
        if face is not None and layer > 0 and t.face_index(layer - 1) is not None:
            inputs |= {name: spec for name, spec in face.inputs.items() if name != "hidden"}
        name = f"{BETWEEN}_{layer}"
        found[name] = Graph(name, "transformer", partial(Between, t, text, layer), inputs, stage="denoise")
    return found
