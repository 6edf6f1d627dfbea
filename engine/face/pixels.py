"""Pixels of any usual kind to RGB, in little more memory than they and the result take."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError, one_line

Photo = NDArray[np.uint8]

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte decoded
STRIP = 1 << 21  # pixels that are converted at once
# What Pillow may decode: its other formats are no photographs, or start other programs (EPS starts Ghostscript).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
ORIENTATION = 0x0112  # EXIF's tag
# By its value: quarter turns to the left that set the stored picture upright, after rows and columns were swapped.
UPRIGHT = {2: (3, True), 3: (2, False), 4: (1, True), 5: (0, True), 6: (3, False), 7: (2, True), 8: (1, False)}
# Modes that Pillow converts to RGB and RGBA by way of another one only.
DETOURS = {"La": "LA", "RGBa": "RGBA"}
WIDE = ("I", "F")  # what modes begin with whose values are more than a byte


def too_large(name: str, size: tuple[int, int] | None = None) -> InputError:
    given = f"{size[0]} x {size[1]} is" if size else "is"
    return InputError(f"{name}: {given} more than {MAX_PIXELS // 10**6} megapixels; reduce it first")


def from_pil(image: Image.Image, name: str) -> Photo:
    """An image of any mode of Pillow's, turned upright as its EXIF says.

    Raises:
        InputError: it is empty, too large, damaged, or of a format or mode that is no photograph's.
    """
    if 0 in image.size:
        raise InputError(f"{name}: is empty ({image.width} x {image.height} pixels); give a photo")
    if image.width * image.height > MAX_PIXELS:
        raise too_large(name, image.size)
    if image.format not in (None, *FORMATS) and getattr(image, "tile", None):  # tiles are what is still to be decoded
        raise InputError(f"{name}: is a picture in {image.format}; save it as JPEG, PNG or WebP first")
    try:
        return upright(in_strips(image, name), _orientation(image))
    except InputError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in a decoder: OSError, SyntaxError, ValueError, ...
        raise InputError(f"{name}: is damaged ({one_line(error, 200)}); save or download it again") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the picture is sound where what is said about it is not: shown as it is stored
        return 1


def upright(photo: Photo, orientation: int) -> Photo:
    """Turned and mirrored by EXIF's orientation, a view."""
    turns, swapped = UPRIGHT.get(orientation, (0, False))
    return np.rot90(photo.transpose(1, 0, 2) if swapped else photo, turns)


def in_strips(image: Image.Image, name: str) -> Photo:
    """RGB of an image, converted strip by strip."""
    image.load()
    found = np.empty((image.height, image.width, 3), np.uint8)
    if image.mode.startswith(WIDE):
        extrema = [(strip.min(), strip.max()) for _, strip in _strips(image)]
        low, high = float(min(e[0] for e in extrema)), float(max(e[1] for e in extrema))
        kind = np.dtype(np.uint16) if image.mode.startswith("I;16") else np.asarray(image.crop((0, 0, 1, 1))).dtype
        convert = to_bytes(kind, low, high, name)
        for rows, strip in _strips(image):
            found[rows] = convert(strip)[..., None]
        return found
    for top, part in _parts(image):
        part = part.convert(DETOURS.get(part.mode, part.mode))
        rows = slice(top, top + part.height)
        if part.has_transparency_data:
            found[rows] = over_white(np.asarray(part.convert("RGBA")))
        else:
            found[rows] = np.asarray(part.convert("RGB"))
    return found


def _parts(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    step = max(1, STRIP // image.width)
    for top in range(0, image.height, step):
        yield top, image.crop((0, top, image.width, min(top + step, image.height)))


def _strips(image: Image.Image) -> Iterator[tuple[slice, NDArray[Any]]]:
    for top, part in _parts(image):
        yield slice(top, top + part.height), np.asarray(part)


def from_array(array: NDArray[Any], name: str) -> Photo:
    """Numbers of any usual kind, [H, W] or [H, W, 1 | 3 | 4].

    Raises:
        InputError: another shape, other values, or too large.
    """
    # What is more than an array, such as np.matrix, has operations of its own.
    array = np.asarray(array.filled(0) if isinstance(array, np.ma.MaskedArray) else array)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        shape = list(array.shape[:2]) if array.ndim == 3 and array.shape[2] == 1 else list(array.shape)
        raise InputError(f"{name}: has the shape {shape}; give [height, width, 3] with the channels last")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise too_large(name, (array.shape[1], array.shape[0]))
    if array.dtype.kind not in "buif":
        raise InputError(f"{name}: holds values of {array.dtype}; give 0 to 255 as uint8, or 0 to 1 as float")
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return array
    limits = (0.0, 0.0) if array.dtype == np.uint8 else (float(array.min()), float(array.max()))
    convert = to_bytes(array.dtype, *limits, name)
    found = np.empty((*array.shape[:2], 3), np.uint8)
    step = max(1, STRIP // array.shape[1])
    for top in range(0, len(array), step):
        strip = convert(array[top : top + step])
        found[top : top + step] = over_white(strip) if array.shape[2] == 4 else strip
    return found


def to_bytes(kind: np.dtype[Any], low: float, high: float, name: str) -> Callable[[NDArray[Any]], Photo]:
    """What brings values of a dtype, which lie between `low` and `high`, to 0 ... 255.

    Raises:
        InputError: values that are no photograph's.
    """
    if kind == np.uint8:
        return lambda values: values
    whole = kind.kind in "iu"
    if kind.kind == "b" or (kind.kind == "f" and low >= 0 and high <= 1):
        return lambda values: (values.astype(np.float32) * 255).round().astype(np.uint8)
    if kind != np.uint16 and low >= 0 and high <= 255:
        return lambda values: values.round().astype(np.uint8)
    if whole and low >= 0 and high <= 65535:  # among them Pillow's mode "I" of a 16-bit file
        return lambda values: ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 -> 255, rounded
    raise InputError(f"{name}: has values from {low:g} to {high:g}; give 0 to 255 as uint8, or 0 to 1 as float")


def over_white(rgba: Photo) -> Photo:
    """uint8 [H, W, 4] laid on white, rounded."""
    alpha = rgba[..., 3:].astype(np.uint32)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
