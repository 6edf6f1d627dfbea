"""Hand-written ONNX files for TINY: the names, inputs and outputs of antelopev2, a few kilobytes of weights."""

from pathlib import Path
from typing import Any

import numpy as np

from .skin import BOX, POINTS, constraints

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


# Widths of the heads that the detector answers to, in pixels of its 640 x 640 input: two anchors for each stride.
HEADS = {8: (48, 72), 16: (108, 162), 32: (243, 364)}


def blob_filter(width: float, stride: int, radius: int) -> np.ndarray:
    """[2 * radius + 1] squared: a Gaussian of the size of a head less one of twice its size, in cells of `stride`."""
    axis = np.arange(-radius, radius + 1) * stride
    fine, coarse = (np.exp(-(axis**2) / (2 * sigma**2)) for sigma in (0.21 * width, 0.42 * width))
    return np.outer(fine, fine) / fine.sum() ** 2 - np.outer(coarse, coarse) / coarse.sum() ** 2


def write_scrfd(path: Path) -> None:
    """scrfd_10g_bnkps.onnx: "input.1" [1, 3, H, W] -> scores, boxes and key points at strides 8, 16 and 32.

    Skin colour, averaged to the stride, filtered for blobs of two sizes; a cell is a face where its answer is the
    highest around. Boxes and key points are those of an average head of that size.
    """
    from onnx import TensorProto, helper

    weights, bounds = constraints()
    # The input is (colour - 127.5) / 128.
    constants: dict[str, np.ndarray] = {
        "rule": (weights * 128)[:, :, None, None].astype(np.float32),
        "rule_bias": (bounds + weights.sum(axis=1) * 127.5).astype(np.float32),
        "all": np.full((1, 4, 1, 1), -1, np.float32),
        "one": np.ones(1, np.float32),
        "gain": np.full((), 40, np.float32),
        "threshold": np.full((), 0.38, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input.1", "rule", "rule_bias"], ["broken"], "Conv_0"),
        helper.make_node("Relu", ["broken"], ["amount"], "Relu_1"),
        helper.make_node("Conv", ["amount", "all", "one"], ["inside"], "Conv_2"),
        helper.make_node("Relu", ["inside"], ["skin"], "Relu_3"),
    ]
    # The names of the real file's outputs, in its order: scores, boxes, key points, for each stride.
    names = {8: ("448", "451", "454"), 16: ("471", "474", "477"), 32: ("494", "497", "500")}
    for stride, heads in HEADS.items():
        nodes += detect_at(stride, heads, names[stride], constants)
    values = [1, 4, 10]
    outputs = [
        helper.make_tensor_value_info(names[stride][kind], TensorProto.FLOAT, [None, values[kind]])
        for kind in range(3)
        for stride in HEADS
    ]
    image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, "?", "?"])
    save_graph(path, "scrfd_10g_bnkps", nodes, [image], outputs, constants)


def detect_at(
    stride: int, heads: tuple[int, int], names: tuple[str, str, str], constants: dict[str, np.ndarray]
) -> list[Any]:
    """The nodes of one stride, from "skin" [1, 1, H, W] to the three outputs."""
    from onnx import helper

    radius = round(3 * 0.42 * heads[1] / stride)
    span = 2 * round(heads[0] / stride / 2) + 1  # the neighbourhood in which only the best cell is a face
    p = f"s{stride}_"
    constants[p + "blob"] = np.stack([blob_filter(w, stride, radius) for w in heads])[:, None].astype(np.float32)
    # A cell reports from its corner (stride / 2 before its middle), in units of the stride.
    boxes = [(np.array([-1, 1])[:, None] * w * BOX / stride + np.array([[-0.5], [0.5]])).ravel() for w in heads]
    points = [(w * POINTS / stride + 0.5).ravel() for w in heads]
    for name, rows in (("boxes", boxes), ("points", points)):
        constants[p + name] = np.concatenate(rows).astype(np.float32)
        constants[p + name + "_zero"] = np.zeros((2 * len(rows[0]), 1, 1, 1), np.float32)
        constants[p + name + "_shape"] = np.array([-1, len(rows[0])], np.int64)
    constants[p + "scores_shape"] = np.array([-1, 1], np.int64)

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        # insightface takes a graph whose first nodes are called Sub and Mul for one that normalises its input.
        return helper.make_node(kind, inputs, [output], f"{p}{kind}_{output}", **attributes)

    nodes = [
        node("AveragePool", ["skin"], p + "skin", kernel_shape=[stride, stride], strides=[stride, stride]),
        node("Conv", [p + "skin", p + "blob"], p + "answer", pads=[radius] * 4),
        node("MaxPool", [p + "answer"], p + "best", kernel_shape=[span, span], pads=[span // 2] * 4, strides=[1, 1]),
        node("GreaterOrEqual", [p + "answer", p + "best"], p + "peak"),
        node("Cast", [p + "peak"], p + "mask", to=1),
        node("Sub", [p + "answer", "threshold"], p + "above"),
        node("Mul", [p + "above", "gain"], p + "logit"),
        node("Sigmoid", [p + "logit"], p + "probability"),
        node("Mul", [p + "probability", p + "mask"], p + "scores"),
        node("Conv", [p + "skin", p + "boxes_zero", p + "boxes"], p + "box_map"),
        node("Conv", [p + "skin", p + "points_zero", p + "points"], p + "point_map"),
    ]
    for source, shape, output in (("scores", "scores", 0), ("box_map", "boxes", 1), ("point_map", "points", 2)):
        nodes.append(node("Transpose", [p + source], p + source + "_last", perm=[0, 2, 3, 1]))
        nodes.append(node("Reshape", [p + source + "_last", p + shape + "_shape"], names[output]))
    return nodes
