"""The chain on TINY's models: one face for everything."""

import warnings

import cv2
import numpy as np
import pytest
import torch

from consisid.engine.errors import FaceError
from consisid.engine.face.alignment import FFHQ, arcface_crop
from consisid.engine.face.analysis import analyse, features, square
from consisid.engine.face.keypoints import draw_points
from consisid.engine.face.photo import load_photo


def test_the_astronaut(models, astronaut):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        analysis = analyse(load_photo(astronaut), models)
    assert len(analysis.people) == 1
    assert analysis.crop.shape == (512, 512, 3)
    assert analysis.grey.shape == (1, 3, 512, 512)
    bgr = np.ascontiguousarray(astronaut[..., ::-1])
    expected = models.arcface(arcface_crop(bgr, models.scrfd(bgr).points[0]))
    np.testing.assert_array_equal(analysis.arcface, expected)
    # The head of the photograph lies at x 155 to 300, y 15 to 190.
    assert ((analysis.points_photo > (155, 60)) & (analysis.points_photo < (300, 190))).all()
    white = (analysis.crop == 255).all(axis=-1).mean()
    assert 0.1 < white < 0.7
    assert (analysis.grey[:, 0] == analysis.grey[:, 2]).all()
    id_cond, hidden = features(analysis, models)
    assert id_cond.shape == (1, 1280)
    assert [tuple(h.shape) for h in hidden] == [(1, 577, 64)] * 5


def test_no_face(models, landscape, astronaut):
    grey = np.repeat(cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY)[..., None], 3, -1)
    for photo in (landscape, grey):
        with pytest.raises(FaceError, match="no face found"):
            analyse(load_photo(photo), models)


@pytest.fixture(scope="module")
def two(astronaut):
    """A larger head on the left, mirrored and smaller on the right."""
    large = cv2.resize(astronaut, (640, 640), interpolation=cv2.INTER_AREA)
    small = cv2.resize(astronaut[:, ::-1], (448, 448), interpolation=cv2.INTER_AREA)
    photo = np.full((640, 1024, 3), 120, np.uint8)
    photo[:, :640] = large
    photo[100:548, 640:] = small[:, 64:]
    return photo


def test_several_faces(models, two):
    with pytest.warns(UserWarning, match=r"2 faces .*number 0 from the left; choose with face="):
        largest = analyse(two, models)
    left, right = analyse(two, models, face=0), analyse(two, models, face=1)
    assert largest.chosen == 0
    np.testing.assert_array_equal(largest.crop, left.crop)
    assert left.points_photo.max() < 640 < right.points_photo[:, 0].min()
    # Embedding and crop are of the same person: the crop's key points are its own.
    for analysis in (left, right):
        assert ((analysis.points_crop > 100) & (analysis.points_crop < 512)).all()
    assert not torch.equal(left.arcface, right.arcface)


def test_embedding_falls_back_to_the_crop(models, astronaut):
    photo = np.ascontiguousarray(astronaut[:200, 140:320])
    with pytest.warns(UserWarning, match="SCRFD does not see"):
        analysis = analyse(photo, models)
    np.testing.assert_allclose(analysis.points_crop, FFHQ, atol=40)


def test_alignment_falls_back_to_scrfd(models, astronaut):
    class Half:
        scrfd, arcface, bisenet, eva = models.scrfd, models.arcface, models.bisenet, models.eva

        @staticmethod
        def retinaface(image):
            boxes, scores, points = models.retinaface(image)
            return boxes, torch.zeros_like(scores), points

    with pytest.warns(UserWarning, match="RetinaFace does not see"):
        analysis = analyse(astronaut, Half())
    np.testing.assert_allclose(analysis.points_crop, FFHQ, atol=40)
    with pytest.raises(FaceError, match="RetinaFace sees no face"):
        analyse(astronaut, Half(), face="reference")


def test_key_points_are_drawn_in_the_crop(models, astronaut):
    analysis = analyse(astronaut, models)
    picture = draw_points(analysis.points_crop, 512, 512)
    for (x, y), colour in zip(analysis.points_crop[:2], ((255, 0, 0), (0, 255, 0)), strict=True):
        assert tuple(picture[int(y), int(x)]) == colour


def test_a_wide_photo_becomes_square_on_white():
    result = square(torch.zeros(1, 3, 4, 10))
    assert result.shape == (1, 3, 10, 10)
    assert result[0, 0, :, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1, 1]


def test_second_run_gives_the_same_bytes(models, astronaut):
    first, second = (features(analyse(astronaut, models), models)[0] for _ in range(2))
    assert torch.equal(first, second)
