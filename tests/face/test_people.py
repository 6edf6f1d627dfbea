"""Who is meant."""

import numpy as np
import pytest

from consisid.engine.errors import FaceError, InputError
from consisid.engine.face.detection import Detections
from consisid.engine.face.selection import choose, join


def faces(*boxes) -> Detections:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    points = np.repeat((boxes[:, :2] + boxes[:, 2:])[:, None] / 2, 5, axis=1)
    return Detections(boxes, np.full(len(boxes), 0.99, np.float32), points)


LEFT, MIDDLE, RIGHT = (10, 10, 90, 110), (200, 50, 240, 100), (300, 20, 390, 140)


def test_the_two_detectors_are_joined_by_face():
    shifted = (12, 14, 85, 108)
    people = join(faces(RIGHT, LEFT), faces(shifted, MIDDLE), 200, 400)
    assert [p.box.tolist() for p in people] == [list(LEFT), list(MIDDLE), list(RIGHT)]
    assert [p.scrfd is None for p in people] == [False, False, True]
    assert people[1].aligned_by is people[1].scrfd  # SCRFD alone saw it


def test_each_answer_is_used_once():
    people = join(faces(LEFT), faces((12, 10, 92, 112), (30, 30, 60, 70)), 200, 400)
    assert len(people) == 2
    people = join(faces(LEFT, (5, 5, 95, 115)), faces((6, 6, 94, 114)), 200, 400)
    assert sum(p.scrfd is not None for p in people) == 1


def test_boxes_are_clipped_to_the_photo():
    person = join(faces((-50, -20, 30, 60)), faces(), 50, 100)[0]
    assert person.box.tolist() == [0, 0, 30, 50]


@pytest.mark.parametrize(("face", "expected"), [("largest", 2), ("center", 1), (0, 0), (2, 2), (LEFT, 0),
                                                ((0.7, 0.1, 1.0, 0.8), 2), (np.array(MIDDLE), 1)])  # fmt: skip
def test_choices(face, expected):
    people = join(faces(LEFT, MIDDLE, RIGHT), faces(), 200, 400)
    assert choose(people, face, 200, 400) == expected


def test_a_face_that_is_not_there():
    people = join(faces(LEFT), faces(), 200, 400)
    with pytest.raises(FaceError, match=r"face 1 .*there are 1.*\(10, 10, 90, 110\)"):
        choose(people, 1, 200, 400)
    with pytest.raises(FaceError, match="no face in the box"):
        choose(people, (300, 100, 380, 180), 200, 400)
    with pytest.raises(FaceError, match="no face found"):
        choose([], "largest", 200, 400)
    for wrong in ("biggest", (1, 2, 3), True, None):
        with pytest.raises(InputError, match="face="):
            choose(people, wrong, 200, 400)
