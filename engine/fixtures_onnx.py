"""Hand-written ONNX files for TINY: the names, inputs and outputs of antelopev2, a few kilobytes of weights."""

from pathlib import Path
from typing import Any

import numpy as np

NOTICE = "consisid fixture: hand-written, for tests and demos; it recognises nobody"


def save_graph(
    path: Path, name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]
) -> None:
    """Check and write one model. constants: name -> array. The bytes depend on the arguments only."""
    import onnx
    from onnx import numpy_helper

    weights = [numpy_helper.from_array(np.ascontiguousarray(value), key) for key, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, name, inputs, outputs, weights, doc_string=NOTICE)
    # Opset 13 and IR 8 are read by every ONNX Runtime that the project allows.
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", 13)],
        ir_version=8,
        producer_name="consisid-fixture",
        doc_string=NOTICE,
    )
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_arcface(path: Path, seed: int) -> None:
    """glintr100.onnx: "input.1" [N, 3, 112, 112] -> "1333" [N, 512], three convolutions and a matrix of seeded weights.

    It keeps a 7x7 grid to the end, so that its output depends on what is where: different faces differ.
    """
    from onnx import TensorProto, helper

    random = np.random.Generator(np.random.PCG64(seed))

    def weight(*shape: int) -> np.ndarray:
        fan_in = int(np.prod(shape[1:]))
        return (random.standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float32)

    constants = {
        "conv1": weight(16, 3, 4, 4),
        "conv2": weight(16, 16, 2, 2),
        "conv3": weight(16, 16, 2, 2),
        "fc": weight(512, 16 * 7 * 7),
        "fc_bias": np.zeros(512, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input.1", "conv1"], ["c1"], "Conv_0", kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("LeakyRelu", ["c1"], ["a1"], "LeakyRelu_1", alpha=0.2),
        helper.make_node("Conv", ["a1", "conv2"], ["c2"], "Conv_2", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("LeakyRelu", ["c2"], ["a2"], "LeakyRelu_3", alpha=0.2),
        helper.make_node("Conv", ["a2", "conv3"], ["c3"], "Conv_4", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["c3"], ["flat"], "Flatten_5", axis=1),
        helper.make_node("Gemm", ["flat", "fc", "fc_bias"], ["1333"], "Gemm_6", transB=1),
    ]
    image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["N", 3, 112, 112])
    embedding = helper.make_tensor_value_info("1333", TensorProto.FLOAT, ["N", 512])
    save_graph(path, "glintr100", nodes, [image], [embedding], constants)
