"""Numbers of the reference that decide what the networks see and what becomes of it, written down a second time.

`make face-parity` compares the networks with the packages that the numbers are from; here are the numbers alone.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from consisid.engine.face import alignment as align
from consisid.engine.face.detection import SCRFD_SIZE, Scrfd, decode_retinaface, priors, retinaface_input
from consisid.engine.networks.bisenet import BiSeNet
from consisid.engine.networks.retinaface import RetinaFace

# insightface, utils/face_align.py
ARCFACE = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
# facexlib, utils/face_restoration_helper.py
FFHQ = [
    [192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043],
    [313.08905, 371.15118],
]  # fmt: skip
# diffusers, pipelines/consisid/consisid_utils.py
WHITE = {0, 16, 18, 7, 8, 9, 14, 15}


@pytest.mark.parametrize(
    ("solve", "template"), [(align.arcface_transform, ARCFACE), (align.ffhq_transform, FFHQ)], ids=["arcface", "ffhq"]
)
def test_a_face_in_its_place_stays_there(solve, template):
    np.testing.assert_allclose(solve(np.array(template, np.float32)), [[1, 0, 0], [0, 1, 0]], atol=1e-4)


def test_beyond_the_photo_the_crop_is_grey():
    """Of facexlib, in BGR; ArcFace's crop is black there."""
    photo = np.zeros((20, 20, 3), np.uint8)
    crop = align.ffhq_crop(photo, np.array([[1.0, 0, 0], [0, 1, 0]]))
    assert crop[300, 300].tolist() == [135, 133, 132]
    assert crop[10, 10].tolist() == [0, 0, 0]
    points = np.array(ARCFACE, np.float32) - 60
    assert align.arcface_crop(np.full((20, 20, 3), 200, np.uint8), points)[0, 0].tolist() == [0, 0, 0]


def test_what_is_painted_white():
    logits = torch.eye(19).T[None, :, None]
    crop = torch.full((1, 3, 1, 19), 0.25)
    colour, grey = align.parse(crop, logits)
    for image in (colour, grey):
        assert {label for label in range(19) if image[0, 0, 0, label] == 1} == WHITE


def test_pixels_are_cut_not_rounded():
    """0.5 * 255 is 127.5, and 0.998 * 255 is 254.49 and 254.9 for 0.9996."""
    image = torch.tensor([0.5, 0.998, 0.9996, 1.0]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert align.to_image(image)[0, :, 0].tolist() == [127, 254, 254, 255]


def test_bisenet_sees_imagenets_statistics():
    found = align.parsing_input(torch.full((1, 3, 1, 1), 0.6)).flatten()
    expected = [(0.6 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_retinaface_sees_the_mean_taken_off():
    found = retinaface_input(np.full((1, 1, 3), 200, np.uint8)).flatten()
    assert found.tolist() == [200 - 104, 200 - 117, 200 - 123]


def test_bisenets_map_is_enlarged_corner_to_corner():
    small = torch.randn(1, 19, 4, 5, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        network = BiSeNet()
    network.cp = network.ffm = nn.Identity()
    network.cp.forward = lambda image: (image,)
    network.conv_out = nn.Identity()
    network.conv_out.forward = lambda image: small
    found = network(torch.empty(1, 3, 7, 9))
    assert found.shape == (1, 19, 7, 9)
    torch.testing.assert_close(found[..., ::2, ::2], small)  # every second pixel is one of the map's


@pytest.mark.parametrize(("backbone", "leak"), [("resnet50", 0.0), ("mobile0.25", 0.1)])
def test_maps_of_64_channels_and_fewer_leak(backbone, leak):
    """facexlib's rule, in the pyramid and in the context modules."""
    with torch.device("meta"):
        network = RetinaFace(backbone)
    parts = (network.fpn, network.ssh1, network.ssh2, network.ssh3)
    slopes = [m.negative_slope for part in parts for m in part.modules() if isinstance(m, nn.LeakyReLU)]
    assert len(slopes) == 5 + 3 * 2
    assert set(slopes) == {leak}


def beside(shift: float, side: float) -> float:
    """The overlap of two squares beside each other."""
    return (side - shift) / (side + shift)


@pytest.mark.parametrize(("shift", "count"), [(41, 1), (45, 2)])
def test_scrfd_takes_faces_for_one_from_an_overlap_of_four_tenths(shift, count):
    """Squares of 99 pixels, 100 where corners count as pixels, of one stride's cells."""
    assert (beside(shift, 100) > 0.4) is (count == 1)
    cells = (SCRFD_SIZE // 32) ** 2 * 2
    scores, sides = np.zeros((cells, 1), np.float32), np.zeros((cells, 4), np.float32)
    points = np.zeros((cells, 10), np.float32)
    for cell, begin in ((0, 0.0), (2, float(shift))):  # anchors at x = 0 and x = 32
        centre = 32.0 * (cell // 2)
        scores[cell] = 0.9 - cell / 100
        sides[cell] = np.array([centre - begin, 0, begin + 99 - centre, 99]) / 32
    empty = [(np.zeros(((SCRFD_SIZE // s) ** 2 * 2, n), np.float32)) for n in (1, 4, 10) for s in (8, 16)]
    outputs = [empty[0], empty[1], scores, empty[2], empty[3], sides, empty[4], empty[5], points]
    detector = object.__new__(Scrfd)
    detector.session, detector.input_name = SimpleNamespace(run=lambda names, inputs: outputs), "input"
    detector.size = (SCRFD_SIZE, SCRFD_SIZE)
    assert len(detector.detect(np.zeros((SCRFD_SIZE, SCRFD_SIZE, 3), np.uint8))) == count


@pytest.mark.parametrize(("shift", "count"), [(6.5, 1), (7.2, 2)])
def test_retinaface_takes_faces_for_one_from_an_overlap_of_four_tenths(shift, count):
    """Two of the squares of 16 pixels at stride 8; the second moved, in units of a tenth of its side."""
    assert (beside(shift, 16) > 0.4) is (count == 1)
    number = len(priors(64, 64))
    boxes, scores, points = torch.zeros(1, number, 4), torch.zeros(1, number, 2), torch.zeros(1, number, 10)
    first, second = 2 * (3 * 8 + 3), 2 * (3 * 8 + 4)  # centres 8 pixels apart
    scores[0, first, 1], scores[0, second, 1] = 0.99, 0.98
    boxes[0, second, 0] = (shift - 8) / 1.6
    assert len(decode_retinaface(boxes, scores, points, 64, 64)) == count
