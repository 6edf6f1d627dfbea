"""The picture of the five key points that a variant with is_kps is conditioned on."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))  # RGB, one for each point
NOSE = 2  # every other point is joined to it
LIMB, DOT = 4, 10  # half the width of a limb, the radius of a point, in pixels


def draw_points(points: NDArray[np.floating], height: int, width: int) -> NDArray[np.uint8]:
    """Dots and dimmed limbs on black, pixel for pixel as diffusers' `draw_kps`.

    Args:
        points: [5, 2], x and y in the coordinates of the picture that is drawn. The crop's are Analysis.points_crop;
            the reference draws those of the photo on a picture of the crop's size.
        height, width: of the picture in pixels.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    canvas = np.zeros((height, width, 3))
    for index, colour in enumerate(COLOURS):
        if index == NOSE:
            continue
        end, nose = points[index], points[NOSE]
        middle = np.mean((end, nose), axis=0)
        length, angle = math.dist(end, nose), math.degrees(math.atan2(end[1] - nose[1], end[0] - nose[0]))
        limb = cv2.ellipse2Poly((int(middle[0]), int(middle[1])), (int(length / 2), LIMB), int(angle), 0, 360, 1)
        cv2.fillConvexPoly(canvas, limb, colour)
    picture = (canvas * 0.6).astype(np.uint8)
    for (x, y), colour in zip(points, COLOURS, strict=True):
        cv2.circle(picture, (int(x), int(y)), DOT, colour, -1)
    return picture
