"""Each kernel's ONNX function by itself against the kernel's reference: as ONNX Runtime runs its body, and line by line
in Python, where a wrong line can be looked at. The graphs that call them are in test_onnx.py."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxscript import evaluator
from torch import Tensor

from consisid.export.onnx import functions
from consisid.kernels import (
    face_cross_attention,
    gated_modulated_norm,
    gated_residual,
    group_norm_silu,
    joint_attention,
    linear_gelu,
    modulated_norm,
    qk_norm_rope,
)

B, TEXT, VIDEO, HEADS, DIM = 2, 3, 5, 2, 8
S, C = TEXT + VIDEO, HEADS * DIM
EPS = 0.03  # so large that it counts
TOLERANCE = 2e-6  # of values of size one: float32, in another order


class FirstOutput(evaluator.ORTEvaluator):
    """Operators as the functions use them: of a LayerNormalization without the statistics that it may give too."""

    def _eval(self, schema: Any, inputs: Any, attributes: Any, closure: Any) -> Any:
        return super()._eval(schema, inputs, attributes, closure)[:1]


def by_line(name: str, tensors: list[Tensor], attributes: dict[str, Any]) -> list[np.ndarray]:
    with evaluator.default_as(FirstOutput()):
        found = getattr(functions, name)(*(x.numpy() for x in tensors), **attributes)
    return list(found) if isinstance(found, tuple) else [found]


def by_body(name: str, tensors: list[Tensor], attributes: dict[str, Any]) -> list[np.ndarray]:
    """As a model of one node."""
    given = [f"given_{i}" for i in range(len(tensors))]
    body = next(proto for proto in functions.protos({name}) if proto.name == name)
    made = list(body.output)
    io = [
        onnx.helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, t.shape)
        for x, t in zip(given, tensors, strict=True)
    ]
    node = onnx.helper.make_node(name, given, made, domain="consisid", **attributes)
    outputs = [onnx.helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, None) for x in made]
    graph = onnx.helper.make_graph([node], name, io, outputs)
    opsets = [onnx.helper.make_opsetid("", functions.OPSET), onnx.helper.make_opsetid("consisid", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions.protos({name}), ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {x: t.numpy() for x, t in zip(given, tensors, strict=True)}))


DRAWN = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=DRAWN)


def norm(size: int) -> list[Tensor]:
    """Weight and bias."""
    return [1 + normal(size), normal(size)]


HIDDEN, UPDATE, MODULATION, GATES = normal(B, S, C), normal(B, S, C), normal(2, 3, C), normal(2, 3, C)
ANGLES = normal(VIDEO, DIM // 2)
CALLS: dict[str, tuple[Any, list[Tensor], dict[str, Any]]] = {
    "modulated_norm": (modulated_norm, [HIDDEN, MODULATION, *norm(C)], {"text_length": TEXT, "eps": EPS}),
    "modulated_norm without text": (modulated_norm, [HIDDEN, MODULATION, *norm(C)], {"text_length": 0, "eps": EPS}),
    "gated_residual": (gated_residual, [HIDDEN, UPDATE, MODULATION], {"text_length": TEXT}),
    "gated_modulated_norm": (
        gated_modulated_norm, [HIDDEN, UPDATE, GATES, MODULATION, *norm(C)], {"text_length": TEXT, "eps": EPS}
    ),
    "qk_norm_rope": (
        qk_norm_rope, [normal(B, S, 3 * C), *norm(DIM), *norm(DIM), ANGLES.cos(), ANGLES.sin()],
        {"heads": HEADS, "eps": EPS},
    ),
    "joint_attention": (joint_attention, [normal(B, size, HEADS, DIM) for size in (S, 4, 4)], {"scale": 0.25}),
    "face_cross_attention": (
        face_cross_attention, [HIDDEN, normal(B, HEADS * 3, C), normal(B, HEADS * 3, C), *norm(C)],
        {"heads": HEADS, "text_length": TEXT, "eps": EPS},
    ),
    "linear_gelu": (linear_gelu, [HIDDEN, normal(4 * C, C) / 4, normal(4 * C)], {}),
    # Frames by the decoder's rule: 2 are spread over 4; of 3 the first has its own; 1 is of 1; 5 of 2 are 1 and 4.
    **{
        f"group_norm_silu of {frames} frames from {low}": (
            group_norm_silu,
            [normal(1, 4, frames, 4, 6), *norm(4), normal(1, 4, low, 2, 3), normal(1, 4, low, 2, 3)],
            {"groups": 2, "eps": EPS},
        )
        for frames, low in ((4, 2), (3, 2), (1, 1), (5, 2), (9, 3))
    },
}  # fmt: skip


@pytest.mark.parametrize("run", [by_body, by_line])
@pytest.mark.parametrize("call", CALLS)
def test_a_function_equals_the_reference_of_its_kernel(call, run):
    kernel, tensors, attributes = CALLS[call]
    right = kernel(*tensors, **attributes)
    expected = [right] if isinstance(right, Tensor) else list(right)
    found = run(call.split()[0], [x.contiguous() for x in tensors], attributes)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs.numpy()).max() <= TOLERANCE * max(1.0, float(theirs.abs().max()))


def test_only_what_is_called_is_in_a_file():
    """And what that calls."""
    assert {proto.name for proto in functions.protos({"gated_residual"})} == {"gated_residual", "row_of", "is_text"}
    assert {proto.name for proto in functions.protos({"qk_norm_rope"})} == {"qk_norm_rope", "rotated"}
    assert functions.protos(set()) == []
