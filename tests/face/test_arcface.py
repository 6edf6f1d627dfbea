"""ArcFace over ONNX Runtime."""

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from skimage import data

from consisid.engine.checkpoint.tiny_faces.onnx_models import write_arcface
from consisid.engine.errors import InputError
from consisid.engine.face.recognition import ArcFace, providers


def probe(path, *names: str):
    """A model whose output is its input, with nodes of these names in front."""
    nodes, last = [], "input.1"
    for index, name in enumerate(names):
        nodes.append(helper.make_node("Identity", [last], [f"t{index}"], name))
        last = f"t{index}"
    nodes.append(helper.make_node("Identity", [last], ["out"], "Last"))
    shape = [1, 3, 112, 112]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("input.1", "out")]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return ArcFace(path)


def test_normalisation_is_rgb_and_centred(tmp_path):
    image = np.zeros((112, 112, 3), np.uint8)
    image[..., 0] = 255  # blue of BGR
    out = probe(tmp_path / "probe.onnx").embed(image)
    np.testing.assert_allclose(out[0, :, 5, 5], [-1, -1, 1])


@pytest.mark.parametrize(("names", "raw"), [(("Sub_0", "Mul_1"), True), (("_minusscalar0", "_mulscalar0"), True),
                                            (("Sub_0",), False), ((*"abcdefgh", "Sub_0", "Mul_1"), False)])  # fmt: skip
def test_a_graph_that_normalises_itself_gets_bytes(tmp_path, names, raw):
    out = probe(tmp_path / "probe.onnx", *names).embed(np.full((112, 112, 3), 255, np.uint8))
    np.testing.assert_allclose(out[0, 0, 0, 0], 255 if raw else 1)


def test_resizes_to_its_input(tmp_path):
    face = data.astronaut()[0:200, 120:320, ::-1]
    net = probe(tmp_path / "probe.onnx")
    expected = cv2.resize(face, (112, 112)).astype(np.float32)[..., ::-1].transpose(2, 0, 1)
    np.testing.assert_allclose(net.embed(face)[0], (expected - 127.5) / 127.5, atol=1e-6)


def test_different_faces_differ(tmp_path):
    write_arcface(tmp_path / "glintr100.onnx", seed=0)
    net = ArcFace(tmp_path / "glintr100.onnx")
    face = np.ascontiguousarray(data.astronaut()[0:200, 120:320, ::-1])
    a, b = net.embed(face), net.embed(np.ascontiguousarray(face[:, ::-1]))
    assert a.shape == (1, 512)
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, net.embed(face))
    cosine = float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert cosine < 0.95, "a mirrored face should be told apart"


CUDA, ROCM = "CUDAExecutionProvider", "ROCMExecutionProvider"


@pytest.mark.parametrize(
    ("device", "available", "expected"),
    [
        ("cpu", ["TensorrtExecutionProvider", CUDA], []),
        ("cuda:1", ["TensorrtExecutionProvider", CUDA], [(CUDA, {"device_id": 1})]),
        ("cuda:0", [ROCM], [(ROCM, {"device_id": 0})]),
        ("cuda:0", ["AzureExecutionProvider"], []),
    ],
)
def test_providers_are_those_that_exist_on_the_gpu_that_is_meant(monkeypatch, device, available, expected):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)
    assert providers(device) == [*expected, "CPUExecutionProvider"]


def test_errors_name_the_file(tmp_path):
    with pytest.raises(InputError, match=r"glintr100\.onnx"):
        ArcFace(tmp_path / "glintr100.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"broken\.onnx.*download"):
        ArcFace(tmp_path / "broken.onnx")
