"""Who is in a photo, and who of them is meant: the detectors' answers joined into one list of faces."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from ..errors import FaceError, InputError, shown
from .detection import Detections

Floats = NDArray[np.floating]
# "largest", "center", the number of a face from the left (0 is the first), a box x0, y0, x1, y1, or "reference".
Choice = str | int | Sequence[float]
WORDS = ("largest", "center", "reference")


@dataclass(frozen=True)
class Person:
    """One face. float32, pixels of the photo.

    box: [4] as x0, y0, x1, y1, clipped to the photo.
    aligned_by: [5, 2], the key points that the face crop is aligned by: RetinaFace's, or SCRFD's where it saw none.
    scrfd: [5, 2], SCRFD's key points for the embedding; None where SCRFD did not see this face.
    """

    box: Floats
    aligned_by: Floats
    scrfd: Floats | None

    @property
    def area(self) -> float:
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))

    @property
    def centre(self) -> Floats:
        return (self.box[:2] + self.box[2:]) / 2


def join(retina: Detections, scrfd: Detections, height: int, width: int) -> list[Person]:
    """Everybody that either detector saw, from left to right.

    Two answers are the same face when the middle of SCRFD's key points lies in RetinaFace's box; where several do, the
    pairs that overlap most go first and no answer is used twice.
    """
    clip = [width, height, width, height]
    low, high = retina.boxes[:, None, :2], retina.boxes[:, None, 2:]
    middle = scrfd.points.mean(axis=1)[None]
    inside = ((low <= middle) & (middle <= high)).all(axis=-1)
    ratio = np.where(inside, overlap(retina.boxes[:, None], scrfd.boxes[None]), -1.0)
    partner: dict[int, int] = {}
    for flat in np.argsort(-ratio, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(scrfd))
        if ratio[i, j] >= 0 and i not in partner and j not in partner.values():
            partner[i] = j
    people = [
        Person(np.clip(retina.boxes[i], 0, clip), retina.points[i], scrfd.points[partner[i]] if i in partner else None)
        for i in range(len(retina))
    ]
    for j in set(range(len(scrfd))) - set(partner.values()):
        points = scrfd.points[j]
        people.append(Person(np.clip(scrfd.boxes[j], 0, clip), aligned_by=points, scrfd=points))
    return sorted(people, key=lambda person: float(person.centre[0]))


def overlap(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes [..., 4], broadcast."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    both = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1)
    return shared / np.maximum(both - shared, 1e-6)


def check_choice(face: object) -> str | int | list[float]:
    """`face` as what chooses a face: a word, a number, or the corners of a box.

    Raises:
        InputError: it can choose none.
    """
    if isinstance(face, str) and face in WORDS:
        return face
    if isinstance(face, Integral) and not isinstance(face, bool):
        return int(face)
    flat = isinstance(face, list | tuple) or (isinstance(face, np.ndarray) and face.ndim == 1)
    if flat and len(face) == 4:  # type: ignore[arg-type]
        with suppress(TypeError, ValueError, OverflowError):
            box = [float(side) for side in face]  # type: ignore[attr-defined]
            if all(isfinite(side) for side in box):
                return box
    raise InputError(
        f"face={shown(face)}: give 'largest', 'center', the number of a face from the left (0 is the first), "
        "or a box (x0, y0, x1, y1) in pixels of the photo as loaded or as fractions of it"
    )


def choose(people: list[Person], face: Choice, height: int, width: int) -> int:
    """The index of the face that is meant.

    Raises:
        FaceError: there is none, or not that one; the faces that there are are named.
        InputError: `face` is nothing that chooses a face.
    """
    if not people:
        raise FaceError("no face found in the photo; give one where the face is sharp, upright and well lit")
    face = check_choice(face)
    if isinstance(face, str) and face == "largest":
        return max(range(len(people)), key=lambda i: people[i].area)
    if isinstance(face, str):
        middle = np.array([width / 2, height / 2])
        return min(range(len(people)), key=lambda i: float(np.linalg.norm(people[i].centre - middle)))
    if isinstance(face, int):
        if 0 <= face < len(people):
            return face
        raise FaceError(f"face {face} was asked for; there are {len(people)}, from left to right: {described(people)}")
    box = np.asarray(face, np.float64)
    if (box <= 1).all():
        box = box * [width, height, width, height]
    ratios = [float(overlap(box, person.box)) for person in people]
    if max(ratios) > 0:
        return int(np.argmax(ratios))
    raise FaceError(f"no face in the box ({', '.join(f'{v:g}' for v in box)}); the faces are at {described(people)}")


def described(people: list[Person]) -> str:
    return ", ".join(f"({', '.join(str(round(float(v))) for v in person.box)})" for person in people)
