"""The files of TINY: layout, determinism, and that they load as the real ones do."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from consisid.engine.checkpoint.tiny_faces.write import write_face_models


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_face_models(folder, seed=0)
    return folder


def test_layout_and_bytes(folder, tmp_path):
    first = digests(folder)
    assert {
        "face_encoder/EVA02_CLIP_L_336_psz14_s6B.pt",
        "face_encoder/models/antelopev2/glintr100.onnx",
    } <= first.keys()
    write_face_models(tmp_path / "again", seed=0)
    assert digests(tmp_path / "again") == first
    write_face_models(tmp_path / "other", seed=1)
    assert (
        digests(tmp_path / "other")["face_encoder/EVA02_CLIP_L_336_psz14_s6B.pt"]
        != first["face_encoder/EVA02_CLIP_L_336_psz14_s6B.pt"]
    )


def test_eva_loads_without_unpickling_code(folder):
    state = torch.load(folder / "face_encoder/EVA02_CLIP_L_336_psz14_s6B.pt", weights_only=True)
    assert all(name.startswith("visual.") for name in state)
    assert state["visual.pos_embed"].shape == (1, 577, 64)


def test_onnx_files_say_that_they_are_fixtures(folder):
    for path in (folder / "face_encoder/models/antelopev2").glob("*.onnx"):
        model = onnx.load(path)
        assert "fixture" in model.doc_string
        assert model.producer_name == "consisid-fixture"


def test_every_file_of_the_real_layout(folder):
    root = folder / "face_encoder"
    assert sorted(digests(root)) == [
        "EVA02_CLIP_L_336_psz14_s6B.pt",
        "detection_Resnet50_Final.pth",
        "models/antelopev2/glintr100.onnx",
        "models/antelopev2/scrfd_10g_bnkps.onnx",
        "parsing_bisenet.pth",
    ]
    for name in ("detection_Resnet50_Final.pth", "parsing_bisenet.pth"):
        state = torch.load(root / name, weights_only=True)
        assert all(value.dtype == torch.float32 for value in state.values())
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) < 20e6


def test_detector_has_the_real_outputs(folder):
    """scrfd_10g_bnkps: nine outputs, scores, boxes and key points at three strides, two anchors a cell."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "face_encoder/models/antelopev2/scrfd_10g_bnkps.onnx")
    outputs = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 640, 480), np.float32)})
    cells = [2 * (640 // s) * (480 // s) for s in (8, 16, 32)]
    assert [o.shape for o in outputs] == [(n, width) for width in (1, 4, 10) for n in cells]
    assert [o.name for o in session.get_outputs()] == ["448", "471", "494", "451", "474", "497", "454", "477", "500"]
