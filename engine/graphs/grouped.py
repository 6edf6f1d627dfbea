"""The table of graphs for engines that hold their weights: layers in shards of a few, each a graph of its own."""

from functools import partial

from ..configs import TransformerConfig
from ..networks import layer_groups as spans
from ..shapes import VideoShape
from ..variants import Variant
from .graph import Graph, Spec
from .table import graph_table

LAYERS = 4  # in a shard: a full-width trunk shard has 0.9 GB of weights in bfloat16, a text shard 1.6 GB
TRUNK, TEXT = "trunk", "text_layers"


def spread(layers: int, count: int) -> list[range]:
    """The layers of each shard, at most `count` of them."""
    return [range(start, min(start + count, layers)) for start in range(0, layers, count)]


def grouped_table(variant: Variant, shape: VideoShape, count: int = LAYERS) -> dict[str, Graph]:
    """graph_table with every layered graph replaced by shards: a graph here has one set of weights and one call.

    Args:
        count: layers in a shard of the trunk or of the text encoder.
    """
    table = graph_table(variant, shape)
    t, x, stream = variant.transformer, variant.text, table["last_block"].inputs
    text = table["text_layer"].inputs
    rows = [graph for graph in table.values() if not graph.grouped]
    for i, layers in enumerate(spread(x.num_layers, count)):
        rows.append(Graph(f"{TEXT}_{i}", "text_encoder", partial(spans.TextLayers, x, layers), text, stage="text"))
    rows.append(
        Graph("modulations", "transformer", partial(spans.Modulations, t), table["modulation"].inputs, stage="schedule")
    )
    identity = Spec((1, t.cross_attn_num_heads * t.LFE_num_querie, t.inner_dim))
    for i, layers in enumerate(spread(t.num_layers, count)):
        inputs = dict(stream) | {"modulation": Spec((len(layers), 2, 2, 3, t.inner_dim))}
        if t.is_train_face:
            inputs |= {f"{what}_{face}": identity for face in faces_of(t, layers) for what in ("keys", "values")}
        rows.append(Graph(f"{TRUNK}_{i}", "transformer", partial(spans.Trunk, t, layers), inputs, stage="denoise"))
    if t.is_train_face:
        rows.append(
            Graph("face_folds", "transformer", partial(spans.FaceFolds, t), table["face_fold"].inputs, stage="face")
        )
    return {row.name: row for row in rows}


def faces_of(config: TransformerConfig, layers: range) -> list[int]:
    """The face attentions that follow these layers."""
    return [face for layer in layers if (face := config.face_index(layer)) is not None]
