"""Every graph as ONNX, by ONNX Runtime in float32 on a CPU, against the module run by PyTorch."""

from dataclasses import replace

import onnx
import onnxruntime
import pytest
import torch
from support.drawn import random_variant, random_weights
from support.engines import SHALLOW
from torch import Tensor

from consisid.engine.backends import backend
from consisid.engine.graphs.graph import Graph, weight_shapes
from consisid.engine.graphs.grouped import grouped_table
from consisid.engine.graphs.spread import spread_groups
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import TINY, TINY_1_5
from consisid.export.onnx.model import DERIVED, skeleton
from consisid.kernels.aot.ptx import STANDALONE

pytestmark = [pytest.mark.order(-8), pytest.mark.slow]

# Three blocks, of which two have a face attention, and the last block; every graph that layers share is in one of them.
GRAPHS = grouped_table(SHALLOW, VideoShape.of(SHALLOW, None, None, None), 3)
# What TINY_1_5 has otherwise than TINY.
GRAPHS_1_5 = grouped_table(TINY_1_5, VideoShape.of(TINY_1_5, None, None, None), 3)
OTHERS_1_5 = ("time_embed", "image_embed", "embed", "head")
# For two devices: before the first joint attention, between two with a face attention, behind the last.
SPREAD = spread_groups(TINY, VideoShape.of(TINY, None, None, None), 2)
# Another order of additions in float32, over up to fifty layers.
TOLERANCE = 5e-6
SIZES = ({"B": 2, "N": 3, "H": 96, "W": 128}, {"B": 1, "N": 1, "H": 65, "W": 72})


def outputs(graph: Graph, file, inputs: list[Tensor]) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    given = {name: x.numpy() for name, x in zip(graph.specs(), inputs, strict=True) if name in known}
    return [torch.from_numpy(x) for x in session.run(None, given)]


def check(graph: Graph, file) -> None:
    weights, names = random_weights(graph), list(weight_shapes(graph.module()))
    torch.manual_seed(0)
    # The symbols that the graph has; one without any has one size.
    symbols = {size for spec in graph.specs().values() for size in spec.shape if isinstance(size, str)}
    for sizes in SIZES if symbols else SIZES[:1]:
        inputs = [spec.example(sizes, torch.float32, "cpu") for spec in graph.specs().values()]
        with torch.no_grad():
            right = backend("eager").load(graph, None, torch.device("cpu"), names)(inputs, weights)
        expected = [right] if isinstance(right, Tensor) else list(right)
        for got, wanted in zip(outputs(graph, file, inputs), expected, strict=True):
            assert got.shape == wanted.shape
            assert (got - wanted).norm() <= TOLERANCE * wanted.norm().clamp(min=1e-6)


LONG = ("eva", "retinaface", "decode_next")  # twenty seconds and more each; decode_next has the layers of decode_first
NAMES = [pytest.param(name, marks=[pytest.mark.full] if name in LONG else []) for name in GRAPHS]


@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime_equals_eager(name, exported):
    check(GRAPHS[name], exported(GRAPHS[name]))


@pytest.mark.parametrize("name", OTHERS_1_5)
def test_onnx_runtime_equals_eager_with_patches_over_time(name, exported):
    check(GRAPHS_1_5[name], exported(GRAPHS_1_5[name]))


@pytest.mark.parametrize("layer", [0, 1, TINY.transformer.num_layers])
def test_onnx_runtime_equals_eager_for_a_share_of_the_tokens(layer, exported):
    check(SPREAD[f"between_{layer}"], exported(SPREAD[f"between_{layer}"]))


FIXED = {"eva", "retinaface", "bisenet"}  # a random configuration has those of TINY
OTHERWISE = {"embed", "face_extract", "face_folds", "trunk_0", "trunk_1"}  # of which more than sizes may differ


@pytest.mark.parametrize(
    ("seed", "chosen"),
    [(5, OTHERWISE), *(pytest.param(seed, None, marks=pytest.mark.full) for seed in (1, 5))],
    ids=["5", "1-whole", "5-whole"],
)
def test_random_configurations(seed, chosen, exported):
    """With the shallowest decoder: how deep one is changes nothing about its kinds of layers."""
    variant = random_variant(seed)
    variant = replace(variant, vae=replace(variant.vae, layers_per_block=1))
    table = grouped_table(variant, VideoShape.of(variant, None, None, None), 3)
    for name in sorted(chosen or table.keys() - FIXED):
        check(table[name], exported(table[name]))


def test_calls_of_kernels_are_functions_with_bodies():
    """One node per call, named as its plugin is; the attributes are what the operator takes after its tensors."""
    model = skeleton(GRAPHS["trunk_1"], torch.bfloat16).model
    calls = [node.op_type for node in model.graph.node if node.domain == "consisid"]
    assert calls == [
        "modulated_norm", "qk_norm_rope", "joint_attention", "gated_modulated_norm", "linear_gelu", "gated_residual"
    ]  # fmt: skip
    assert set(STANDALONE) <= set(calls)
    functions = {function.name: function for function in model.functions}
    assert set(calls) <= set(functions)
    attention = functions["joint_attention"]
    assert "Attention" in {node.op_type for node in attention.node}
    assert all(node.domain in ("", "consisid") for function in functions.values() for node in function.node)
    node = next(node for node in model.graph.node if node.op_type == "joint_attention")
    assert {a.name: round(a.f, 6) for a in node.attribute} == {"scale": 0.125}


def test_weights_are_outside_and_named_as_in_the_checkpoint(exported):
    file = exported(GRAPHS["trunk_1"])
    model = onnx.load(file, load_external_data=False)
    onnx.checker.check_model(str(file))
    outside = onnx.TensorProto.EXTERNAL
    names = {tensor.name for tensor in model.graph.initializer if tensor.data_location == outside}
    assert "transformer_blocks.3.attn1.to_qkv.weight" in names
    assert all(name in weight_shapes(GRAPHS["trunk_1"].module()) or name.startswith(DERIVED) for name in names)
    assert [value.name for value in model.graph.input] == list(GRAPHS["trunk_1"].specs())
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "B"
    assert file.stat().st_size < file.with_name(file.name + ".data").stat().st_size


def test_a_node_knows_its_line_of_source():
    """For the error of a node that a library does not take; no path of the machine that exported it."""
    model = skeleton(GRAPHS["trunk_1"], torch.float32).model
    places = {entry.value for node in model.graph.node for entry in node.metadata_props}
    assert places
    assert all(place.rpartition(":")[0] in ("transformer.py", "layer_groups.py") for place in places)
