"""One photo, one face: detection, embedding, aligned and parsed crop, and the features of the EVA tower.

Follows `process_face_embeddings` of diffusers' pipelines/consisid/consisid_utils.py in every number, and differs from
it in one thing: embedding and crop are always of the same person.
"""

import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import FaceError
from . import alignment as align
from .detection import Detections, detect_retinaface
from .preprocess import eva_input, id_cond
from .selection import Choice, Person, choose, described, join

Image = NDArray[np.uint8]


class FaceModels(Protocol):
    """The five networks, whatever runs them. Images are uint8 [H, W, 3] BGR, tensors float32 on the CPU."""

    def scrfd(self, image_bgr: Image) -> Detections: ...

    def arcface(self, image_bgr: Image) -> NDArray[np.float32]:
        """An aligned face of any size -> [1, 512]."""

    def retinaface(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RetinaFace.forward on [1, 3, H, W], at the photo's own size."""

    def bisenet(self, image: Tensor) -> Tensor:
        """BiSeNet.forward on [1, 3, 512, 512]."""

    def eva(self, image: Tensor) -> tuple[Tensor, ...]:
        """EvaTower.forward on [1, 3, 336, 336]."""


@dataclass(frozen=True)
class Analysis:
    """What a photo says about one face.

    photo: uint8 [H, W, 3], RGB, as loaded.
    crop: uint8 [512, 512, 3], RGB, aligned to FFHQ's template, on white; what the video is conditioned on.
    grey: float32 [1, 3, 512, 512] in [0, 1], the crop in grey, on white; what the EVA tower sees.
    arcface: float32 [1, 512], not normalised.
    points_photo, points_crop: [5, 2], the same key points in pixels of the photo and of the crop.
    people: every face found, from left to right; `chosen` is the index of the one that is meant.
    """

    photo: Image
    crop: Image
    grey: Tensor
    arcface: Tensor
    points_photo: NDArray[np.floating]
    points_crop: NDArray[np.floating]
    people: tuple[Person, ...]
    chosen: int


def analyse(photo: Image, models: FaceModels, face: Choice = "largest") -> Analysis:
    """Find a face, embed it, align it and cut it out.

    Args:
        photo: uint8 [H, W, 3], RGB, from load_photo.
        models: the networks.
        face: who is meant where there are several: "largest", "center", a number from the left, a box (pixels of the
            photo as loaded, or fractions of it). "reference" does as diffusers: the embedding of SCRFD's largest face
            and the crop of RetinaFace's most central one, which may be two people.

    Raises:
        FaceError: no face, or not the one that was asked for.
        InputError: `face` chooses nothing.

    Warns:
        UserWarning: several faces and none chosen; a face that only one of the two detectors saw.
    """
    height, width = photo.shape[:2]
    image = np.ascontiguousarray(photo[..., ::-1])
    scrfd = models.scrfd(image)
    retina = detect_retinaface(models.retinaface, image)
    people = join(retina, scrfd, height, width)
    if face == "reference":
        person = mixed(retina, scrfd, height, width)
        chosen = 0
        people = [person]
    else:
        chosen = choose(people, face, height, width)
        person = people[chosen]
        if len(people) > 1 and face == "largest":
            warnings.warn(
                f"{len(people)} faces in the photo, at {described(people)}; the largest is taken, number {chosen} from "
                "the left; choose with face=",
                stacklevel=2,
            )
    matrix = align.ffhq_transform(person.aligned_by)
    aligned = align.ffhq_crop(image, matrix)
    if person.scrfd is None:
        warnings.warn(
            "the embedding is of the aligned crop: SCRFD does not see the face that RetinaFace sees", stacklevel=2
        )
        embedding, points = models.arcface(aligned), person.aligned_by
    else:
        if person.scrfd is person.aligned_by:
            warnings.warn("the crop is aligned by SCRFD's key points: RetinaFace does not see this face", stacklevel=2)
        embedding, points = models.arcface(align.arcface_crop(image, person.scrfd)), person.scrfd
    crop = align.to_tensor(aligned)
    colour, grey = align.parse(crop, models.bisenet(align.parsing_input(crop)))
    return Analysis(
        photo=photo,
        crop=align.to_image(colour),
        grey=grey,
        arcface=torch.from_numpy(embedding).float().reshape(1, -1),
        points_photo=points,
        points_crop=align.move(points, matrix),
        people=tuple(people),
        chosen=chosen,
    )


def mixed(retina: Detections, scrfd: Detections, height: int, width: int) -> Person:
    """The reference's choice: crop and embedding each by a rule of its own."""
    if not len(retina):
        raise FaceError("RetinaFace sees no face in the photo, and face='reference' needs it; use face='largest'")
    middle = np.array([width / 2, height / 2])
    central = int(np.argmin(np.linalg.norm(retina.centres - middle, axis=1)))
    largest = scrfd.points[np.argsort(scrfd.areas, kind="stable")[-1]] if len(scrfd) else None
    return Person(retina.boxes[central], retina.points[central], largest)


def features(analysis: Analysis, models: FaceModels, whole: bool = False) -> tuple[Tensor, list[Tensor]]:
    """What the local facial extractor takes.

    Args:
        analysis: of the face.
        models: the networks.
        whole: show the tower the whole photo in colour instead of the parsed crop in grey (is_align_face=False of the
            reference, which fails on a photo that is not square; here it is set on white to a square first).

    Returns:
        id_cond [1, 1280] and the five hidden states [1, 577, width].
    """
    shown = square(align.to_tensor(np.ascontiguousarray(analysis.photo[..., ::-1]))) if whole else analysis.grey
    embedding, *hidden = models.eva(eva_input(shown))
    return id_cond(analysis.arcface.to(embedding), embedding), hidden


def square(image: Tensor) -> Tensor:
    """[1, 3, H, W] in the middle of a white square."""
    height, width = image.shape[2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return F.pad(image, (left, side - width - left, top, side - height - top), value=1.0)
