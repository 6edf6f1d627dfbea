"""The two face detectors of the reference: SCRFD under ONNX Runtime and the arithmetic around RetinaFace."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..networks.retinaface import ANCHORS, STRIDES, VARIANCES
from .recognition import open_session

Floats = NDArray[np.float32]

SCRFD_SIZE = 640  # pixels a side of the letterboxed input
SCRFD_SCORE, SCRFD_OVERLAP = 0.5, 0.4  # insightface's defaults
RETINA_SCORE, RETINA_OVERLAP = 0.97, 0.4  # what facexlib's FaceRestoreHelper asks for
RETINA_MEAN = (104.0, 117.0, 123.0)  # BGR


@dataclass(frozen=True)
class Detections:
    """Faces in one image, best score first. float32, in pixels of that image.

    boxes: [N, 4] as x0, y0, x1, y1. scores: [N]. points: [N, 5, 2], x and y of the eyes, the nose, the corners of the
    mouth; left means left in the image.
    """

    boxes: Floats
    scores: Floats
    points: Floats

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def areas(self) -> NDArray[np.floating]:
        return (self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1])

    @property
    def centres(self) -> NDArray[np.floating]:
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def take(self, index: Any) -> "Detections":
        return Detections(self.boxes[index], self.scores[index], self.points[index])


def suppress(found: Detections, overlap: float, pixel: float) -> Detections:
    """Greedy non-maximum suppression of detections that are sorted by score.

    pixel: what a box's sides gain: 1 where corners are counted as pixels (insightface), 0 where they are points.
    """
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    sides = high - low + np.float32(pixel)
    areas = sides[:, 0] * sides[:, 1]
    alive = np.ones(len(found), bool)
    for i in range(len(found)):
        if not alive[i]:
            continue
        sides = np.minimum(high[i], high) - np.maximum(low[i], low) + np.float32(pixel)
        shared = np.maximum(0, sides[:, 0]) * np.maximum(0, sides[:, 1])
        alive[i + 1 :] &= ~(shared / (areas[i] + areas - shared) > overlap)[i + 1 :]
    return found.take(alive)


class Scrfd:
    """scrfd_10g_bnkps.onnx (Guo et al., arXiv:2105.04714). Numerically insightface's SCRFD at det_size 640."""

    def __init__(self, path: Path | str, device: torch.device | str = "cpu") -> None:
        self.session = open_session(Path(path), device)
        entry = self.session.get_inputs()[0]
        self.input_name: str = entry.name
        # A file exported at a fixed size keeps it; the usual one names its axes.
        height, width = (side if isinstance(side, int) else SCRFD_SIZE for side in entry.shape[2:])
        self.size: tuple[int, int] = (width, height)
        outputs = len(self.session.get_outputs())
        if outputs != 9:
            raise InputError(
                f"{path}: a detector with key points has 9 outputs, this has {outputs}; "
                "the checkpoint needs scrfd_10g_bnkps.onnx of antelopev2"
            )

    def detect(self, image_bgr: NDArray[np.uint8]) -> Detections:
        """image_bgr: uint8 [H, W, 3], any size: it is scaled to fit and padded with black to the right and below."""
        canvas, scale = self.letterbox(image_bgr)
        blob = cv2.dnn.blobFromImage(canvas, 1 / 128, self.size, (127.5,) * 3, swapRB=True)
        outputs = self.session.run(None, {self.input_name: blob})
        # Three strides each: scores, then distances to the four sides, then offsets of the key points.
        outputs = [value[0] if value.ndim == 3 else value for value in outputs]
        found = []
        for index, stride in enumerate(STRIDES):
            scores, sides, points = outputs[index], outputs[index + 3] * stride, outputs[index + 6] * stride
            cells = self.centres(stride)
            keep = np.nonzero(scores[:, 0] >= SCRFD_SCORE)[0]
            cells, sides, points = cells[keep], sides[keep], points[keep].reshape(len(keep), 5, 2)
            boxes = np.concatenate((cells - sides[:, :2], cells + sides[:, 2:]), axis=1)
            found.append((boxes / scale, scores[keep, 0], (cells[:, None] + points) / scale))
        boxes, scores, points = (np.concatenate(parts).astype(np.float32) for parts in zip(*found, strict=True))
        ranked = Detections(boxes, scores, points).take(np.argsort(-scores, kind="stable"))
        return suppress(ranked, SCRFD_OVERLAP, pixel=1)

    def letterbox(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
        height, width = image_bgr.shape[:2]
        across, down = self.size
        if height / width > down / across:
            across = int(down / (height / width))
        else:
            down = int(across * (height / width))
        if across < 1 or down < 1:
            raise InputError(f"a photo of {width} x {height} pixels is too narrow to look for a face in; crop it")
        canvas = np.zeros((self.size[1], self.size[0], 3), np.uint8)
        canvas[:down, :across] = cv2.resize(image_bgr, (across, down))
        return canvas, down / height

    def centres(self, stride: int) -> Floats:
        """[cells * 2, 2]: two anchors on the corner of every cell, row by row."""
        rows, columns = np.mgrid[: self.size[1] // stride, : self.size[0] // stride].astype(np.float32) * stride
        return np.stack((columns, rows), axis=-1).reshape(-1, 2).repeat(2, axis=0)


def priors(height: int, width: int) -> Tensor:
    """RetinaFace's priors for an image: [N, 4], float32: centre and size, as fractions of the image."""
    parts = []
    for stride, anchors in zip(STRIDES, ANCHORS, strict=True):
        rows, columns = np.mgrid[: -(-height // stride), : -(-width // stride)] + 0.5
        for anchor in anchors:
            size = np.broadcast_to((anchor / width, anchor / height), (*rows.shape, 2))
            centre = np.stack((columns * stride / width, rows * stride / height), axis=-1)
            parts.append(np.concatenate((centre, size), axis=-1).reshape(-1, 1, 4))
    pairs = [np.concatenate(parts[i : i + 2], axis=1).reshape(-1, 4) for i in range(0, len(parts), 2)]
    return torch.from_numpy(np.concatenate(pairs)).float()


def retinaface_input(image_bgr: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W, 3] at its own size -> float32 [1, 3, H, W] less the mean."""
    image = torch.from_numpy(np.ascontiguousarray(image_bgr.transpose(2, 0, 1))).float()[None]
    return image - image.new_tensor(RETINA_MEAN).view(1, 3, 1, 1)


def decode_retinaface(boxes: Tensor, scores: Tensor, points: Tensor, height: int, width: int) -> Detections:
    """What RetinaFace.forward returns for one image of height x width -> faces above the reference's threshold.

    Numerically facexlib's `detect_faces(image, 0.97)` at the image's own size (detection/retinaface.py).
    """
    boxes, face, points = boxes[0].float().cpu(), scores[0, :, 1].float().cpu(), points[0].float().cpu()
    prior = priors(height, width)
    centre, size = prior[:, :2], prior[:, 2:]
    side = size * torch.exp(boxes[:, 2:] * VARIANCES[1])
    low = centre + boxes[:, :2] * VARIANCES[0] * size - side / 2
    scale = torch.tensor([width, height], dtype=torch.float32)
    corners = torch.cat((low * scale, (low + side) * scale), dim=1)
    spots = (centre[:, None] + points.view(-1, 5, 2) * VARIANCES[0] * size[:, None]) * scale
    found = Detections(corners.numpy(), face.numpy(), spots.numpy())
    found = found.take(found.scores > RETINA_SCORE)
    ranked = found.take(np.argsort(found.scores)[::-1])
    return suppress(ranked, RETINA_OVERLAP, pixel=0)


def detect_retinaface(
    network: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], image_bgr: NDArray[np.uint8]
) -> Detections:
    """RetinaFace on an image of any size, best score first."""
    with torch.no_grad():
        heads = network(retinaface_input(image_bgr))
    return decode_retinaface(*heads, *image_bgr.shape[:2])
