"""The arithmetic of the detectors, and the networks around it."""

import numpy as np
import pytest
import torch

from consisid.engine.checkpoint.face_files import FACE_FILES
from consisid.engine.checkpoint.tiny_faces.torch_models import tiny_bisenet, tiny_retinaface
from consisid.engine.errors import FaceError, InputError
from consisid.engine.face import alignment as align
from consisid.engine.face import detection as detect
from consisid.engine.face.detection import Detections, Scrfd, decode_retinaface, priors, suppress
from consisid.engine.networks.bisenet import BiSeNet, bisenet_state
from consisid.engine.networks.retinaface import RetinaFace, retinaface_backbone, retinaface_state


def found(*boxes, points=None) -> Detections:
    boxes = np.array(boxes, np.float32)
    return Detections(
        boxes, np.linspace(1, 0.9, len(boxes), dtype=np.float32), np.zeros((len(boxes), 5, 2), np.float32)
    )


def test_suppression_keeps_the_best_and_the_distant():
    kept = suppress(found((0, 0, 10, 10), (1, 0, 11, 10), (8, 0, 18, 10), (20, 20, 30, 30)), 0.4, pixel=0)
    assert kept.boxes[:, 0].tolist() == [0, 8, 20]


def test_the_width_of_a_pixel_counts():
    """Two boxes of side 4 that share 2 of 4 columns: overlap 1/3 as points, 15/35 = 0.43 as pixels."""
    boxes = ((0, 0, 4, 4), (2, 0, 6, 4))
    assert len(suppress(found(*boxes), 0.4, pixel=0)) == 2
    assert len(suppress(found(*boxes), 0.4, pixel=1)) == 1


def test_what_was_suppressed_does_not_suppress():
    kept = suppress(found((0, 0, 10, 10), (4, 0, 14, 10), (8, 0, 18, 10)), 0.4, pixel=0)
    assert kept.boxes[:, 0].tolist() == [0, 8]


def test_priors_cover_the_image_in_the_order_of_the_heads():
    grid = priors(60, 100)
    with torch.device("meta"):
        heads = RetinaFace("mobile0.25")(torch.empty(1, 3, 60, 100))
    assert grid.shape[0] == heads[0].shape[1] == 2 * (8 * 13 + 4 * 7 + 2 * 4)
    torch.testing.assert_close(grid[0], torch.tensor([4 / 100, 4 / 60, 16 / 100, 16 / 60]))
    torch.testing.assert_close(grid[1], torch.tensor([4 / 100, 4 / 60, 32 / 100, 32 / 60]))
    torch.testing.assert_close(grid[2, :2], torch.tensor([12 / 100, 4 / 60]))
    torch.testing.assert_close(grid[-1], torch.tensor([112 / 100, 48 / 60, 512 / 100, 512 / 60]))


def test_decoding_by_hand():
    count = len(priors(64, 64))
    boxes, scores, points = torch.zeros(1, count, 4), torch.zeros(1, count, 2), torch.zeros(1, count, 10)
    k = 2 * (3 * 8 + 5)  # stride 8, row 3, column 5, side 16: centre (44, 28)
    scores[0, k, 1] = 0.98
    scores[0, 0, 1] = 0.96
    boxes[0, k] = torch.tensor([1.0, -1.0, np.log(2) / 0.2, 0.0])
    points[0, k, :2] = torch.tensor([5.0, 10.0])
    faces = decode_retinaface(boxes, scores, points, 64, 64)
    assert len(faces) == 1
    # centre 44 + 0.1 * 16, 28 - 0.1 * 16; sides 32 and 16
    np.testing.assert_allclose(faces.boxes[0], [45.6 - 16, 26.4 - 8, 45.6 + 16, 26.4 + 8], atol=1e-4)
    np.testing.assert_allclose(faces.points[0, :2], [[52, 44], [44, 28]], atol=1e-4)


def test_scrfd_is_scaled_back(face_folder, astronaut):
    """The same photograph on a larger canvas: the letterbox scales differently, the answers stay."""
    net = Scrfd(face_folder / FACE_FILES["scrfd"])
    bgr = np.ascontiguousarray(astronaut[..., ::-1])
    wide = np.zeros((512, 640, 3), np.uint8)
    wide[:, :512] = bgr
    a, b = net.detect(bgr), net.detect(wide)
    assert len(a) == len(b) == 1
    # Anchors are up to 32 pixels of the 640 input apart.
    np.testing.assert_allclose(a.points, b.points, atol=40)
    assert net.letterbox(wide)[1] == 1.0
    assert net.letterbox(bgr)[1] == 1.25
    with pytest.raises(InputError, match="too narrow"):
        net.detect(np.zeros((2000, 1, 3), np.uint8))


def test_a_wrong_detector_is_refused(face_folder):
    with pytest.raises(InputError, match=r"9 outputs, this has 1.*scrfd_10g"):
        Scrfd(face_folder / "models/antelopev2/glintr100.onnx")


def test_alignment_undoes_a_similarity():
    angle, scale = 0.3, 0.7
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for template, solve in ((align.FFHQ, align.ffhq_transform), (align.ARCFACE, align.arcface_transform)):
        points = (template @ turn.T + (30, -12)).astype(np.float32)
        matrix = solve(points)
        # float32 points of the order of 400 carry 3e-5 each.
        np.testing.assert_allclose(align.move(points, matrix), template, atol=2e-3)
        # No mirror, one scale.
        np.testing.assert_allclose(matrix[:, :2] @ matrix[:, :2].T, np.eye(2) / scale**2, atol=1e-4)
        assert np.linalg.det(matrix[:, :2]) > 0


def test_a_mirrored_face_is_not_mirrored_back():
    points = (align.ARCFACE * (-1, 1)).astype(np.float32)
    assert np.linalg.det(align.arcface_transform(points)[:, :2]) > 0


def test_points_on_one_spot_are_no_face():
    spot = np.full((5, 2), 7, np.float32)
    with pytest.raises(FaceError, match="one spot"):
        align.ffhq_transform(spot)
    with pytest.raises(FaceError, match="one spot"):
        align.arcface_crop(np.zeros((20, 20, 3), np.uint8), spot)


def test_parsing_keeps_hair_and_drops_the_neck():
    logits = torch.zeros(1, 19, 1, 4)
    for column, label in enumerate((1, 17, 14, 0)):
        logits[0, label, 0, column] = 1
    crop = torch.full((1, 3, 1, 4), 0.25)
    colour, grey = align.parse(crop, logits)
    assert colour[0, 0, 0].tolist() == [0.25, 0.25, 1, 1]
    torch.testing.assert_close(grey[0, 1, 0], torch.tensor([0.25, 0.25, 1, 1]))


def test_fixtures_fit_the_networks():
    state, parser = retinaface_state(tiny_retinaface()), bisenet_state(tiny_bisenet())
    assert retinaface_backbone(state) == "mobile0.25"
    with torch.device("meta"):
        assert RetinaFace("mobile0.25").state_dict().keys() == state.keys()
        assert BiSeNet().state_dict().keys() == parser.keys()


def test_threshold_of_the_reference():
    assert (detect.RETINA_SCORE, detect.SCRFD_SCORE) == (0.97, 0.5)
