"""From key points to aligned crops: FFHQ's template at 512 for the face crop, ArcFace's at 112 for the embedding."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import FaceError
from ..networks.bisenet import BACKGROUND, MEAN, STD
from .preprocess import normalise, to_grey

Image = NDArray[np.uint8]
Floats = NDArray[np.floating]

CROP = 512
# Where the eyes, the nose and the corners of the mouth of an FFHQ face lie in a crop of 512 (facexlib).
FFHQ = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
# The same in a crop of 112 for ArcFace (insightface). float32: the reference solves the transform in that precision.
ARCFACE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
OUTSIDE = (135, 133, 132)  # facexlib's grey, BGR, where the crop reaches beyond the photo


def ffhq_transform(points: Floats) -> NDArray[np.float64]:
    """The similarity [2, 3] that brings points [5, 2] onto FFHQ's template; least median of squares, as facexlib.

    FaceError when the points allow none (all on one spot).
    """
    matrix = cv2.estimateAffinePartial2D(points, FFHQ, method=cv2.LMEDS)[0]
    if matrix is None or not np.isfinite(matrix).all():
        raise FaceError("the key points of the face lie on one spot: it cannot be aligned; use a larger, clearer photo")
    return matrix


def ffhq_crop(image: Image, matrix: NDArray[np.float64]) -> Image:
    """uint8 [H, W, 3] BGR -> uint8 [512, 512, 3] BGR."""
    return cv2.warpAffine(image, matrix, (CROP, CROP), borderMode=cv2.BORDER_CONSTANT, borderValue=OUTSIDE)


def arcface_transform(points: Floats) -> NDArray[np.float64]:
    """The least-squares similarity [2, 3] onto ArcFace's template (Umeyama, PAMI 1991, eq. 34-42).

    Precision matters: a difference in the last digits moves warpAffine's fixed-point coordinates. So this computes in
    the points' own dtype where scikit-image does, which insightface uses.
    """
    source_mean, target_mean = points.mean(axis=0), ARCFACE.mean(axis=0)
    source, target = points - source_mean, ARCFACE - target_mean
    covariance = target.T @ source / len(points)
    left, values, right = np.linalg.svd(covariance)
    # Mirroring is no similarity: flip the weaker axis back.
    signs = np.array([1.0, -1.0 if np.linalg.det(covariance) < 0 else 1.0])
    rotation = left @ np.diag(signs) @ right
    scale = 1.0 / source.var(axis=0).sum() * (values @ signs)
    return np.column_stack((rotation * scale, target_mean - scale * (rotation @ source_mean)))


def arcface_crop(image: Image, points: Floats) -> Image:
    """uint8 [H, W, 3] BGR and points [5, 2] in it -> uint8 [112, 112, 3] BGR, black beyond the photo."""
    if points.std(axis=0).max() == 0:
        raise FaceError("the key points of the face lie on one spot: it cannot be aligned; use a larger, clearer photo")
    return cv2.warpAffine(image, arcface_transform(points), (112, 112), borderValue=0.0)


def move(points: Floats, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """points [N, 2] under a transform [2, 3]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def to_tensor(image_bgr: Image) -> Tensor:
    """uint8 [H, W, 3] BGR -> float32 [1, 3, H, W], RGB in [0, 1]."""
    rgb = np.ascontiguousarray(image_bgr[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(rgb)[None].float() / 255.0


def parsing_input(crop: Tensor) -> Tensor:
    """[1, 3, 512, 512] RGB in [0, 1] -> what BiSeNet takes."""
    return normalise(crop, MEAN, STD)


def parse(crop: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The crop with everything that is not face or hair white: in colour and in grey.

    Args:
        crop: float32 [1, 3, 512, 512], RGB in [0, 1].
        logits: BiSeNet's, [1, 19, 512, 512].

    Returns:
        colour, grey: float32 [1, 3, 512, 512].
    """
    labels = logits.argmax(dim=1, keepdim=True).to(crop.device)
    background = torch.isin(labels, torch.tensor(BACKGROUND, device=crop.device))
    white = torch.ones_like(crop)
    return torch.where(background, white, crop), torch.where(background, white, to_grey(crop))


def to_image(crop: Tensor) -> Image:
    """float32 [1, 3, H, W] in [0, 1] -> uint8 [H, W, 3], truncated as the reference does."""
    return (crop[0].permute(1, 2, 0).cpu().numpy() * 255).astype(np.uint8)
