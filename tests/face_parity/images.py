"""Well-formed photographs: one astronaut, many ways."""

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

Image = NDArray[np.uint8]
HEAD = (227, 105)  # the middle of the head in the photograph


def turned(image: Image, degrees: float) -> Image:
    matrix = cv2.getRotationMatrix2D(HEAD, degrees, 1)
    return cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT)


def greyed(image: Image, colour: float) -> Image:
    """Towards grey: colour 1 leaves the photograph as it is."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    return np.clip(grey + colour * (image - grey), 0, 255).astype(np.uint8)


def photographs() -> dict[str, Image]:
    whole = data.astronaut()
    noise = np.random.default_rng(0).normal(0, 6, whole.shape)
    return {
        "whole": whole,
        "mirrored": np.ascontiguousarray(whole[:, ::-1]),
        "half": cv2.resize(whole, (256, 256), interpolation=cv2.INTER_AREA),
        "three quarters": cv2.resize(whole, (384, 384), interpolation=cv2.INTER_AREA),
        "odd size": cv2.resize(whole, (331, 347), interpolation=cv2.INTER_AREA),
        "700": cv2.resize(whole, (700, 700), interpolation=cv2.INTER_CUBIC),
        "1024": cv2.resize(whole, (1024, 1024), interpolation=cv2.INTER_CUBIC),
        "reduced from 1500": cv2.resize(whole, (1500, 1500), interpolation=cv2.INTER_CUBIC),
        "reduced from 1800 x 1203": cv2.resize(whole[:342], (1800, 1203), interpolation=cv2.INTER_CUBIC),
        "crop of 256": np.ascontiguousarray(whole[0:256, 100:356]),
        "tall crop": np.ascontiguousarray(whole[0:400, 110:350]),
        "wide crop": np.ascontiguousarray(whole[0:230, 0:512]),
        "turned by 10": turned(whole, 10),
        "turned by -15": turned(whole, -15),
        "turned by 25": turned(whole, 25),
        "darker": (whole * 0.8).astype(np.uint8),
        "brighter": np.clip(whole * 1.08, 0, 255).astype(np.uint8),
        "less colour": greyed(whole, 0.85),
        "more colour": greyed(whole, 1.15),
        "noisy": np.clip(whole + noise, 0, 255).astype(np.uint8),
    }
