"""From whatever shows a person to pixels: RGB, upright, at most 1024 on the long edge."""

import hashlib
import io
import os
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from consisid.engine.errors import InputError

Photo = NDArray[np.uint8]
Source = str | os.PathLike[str] | Image.Image | NDArray[Any]

LONG_EDGE = 1024  # as the reference
MIN_SIDE = 40  # below this no detector can see five key points
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte decoded
MAX_BYTES = 100 << 20  # of a download
MAX_FILE = 1 << 30  # bytes; 16 bits of MAX_PIXELS are half of it
TIMEOUT = 20.0  # seconds


@dataclass(frozen=True)
class RawPhoto:
    """A photo before the work on it: what tells it from others is known without decoding it.

    name: what errors call it. content: the bytes of a file or an address, or else uint8 [H, W, 3], RGB, at full size.
    """

    name: str
    content: bytes | Photo

    @property
    def hash(self) -> str:
        """sha256 of the file's bytes, or of size and pixels: equal for equal content, wherever it came from."""
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha256(f"{self.content.shape}".encode() + np.ascontiguousarray(self.content).data).hexdigest()

    def pixels(self) -> Photo:
        """As load_photo returns them."""
        content = decode(self.content, self.name) if isinstance(self.content, bytes) else self.content
        return fit(content, self.name)


def load_photo(source: Source) -> Photo:
    """Read a photo.

    Args:
        source: a path, an http(s) address, a PIL image, or an array [H, W], [H, W, 1 | 3 | 4] (channels last, RGB):
            uint8; uint16 over its full range; float in [0, 1] or in [0, 255].

    Returns:
        uint8 [H, W, 3], RGB. EXIF rotation is applied. Transparency is laid on white, which is also what the face is
        later cut out onto. 16 bits are scaled to 8 (the reference clips them to white). CMYK is converted by Pillow, as
        in the reference. Reduced with LANCZOS4 to 1024 on the long edge, never enlarged.

    Raises:
        InputError: naming the source, what is wrong with it and what to do.
    """
    return take_photo(source).pixels()


def take_photo(source: Source) -> RawPhoto:
    """The bytes of a file or address, fetched each time it is asked for, or the pixels of what is in memory.

    Raises:
        InputError: as load_photo, as far as it shows before decoding a file.
    """
    if isinstance(source, Image.Image):
        return RawPhoto("the image", from_pil(source, "the image"))
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        return RawPhoto(name, download(name) if name.startswith(("http://", "https://")) else read(name))
    if isinstance(source, np.ndarray):
        return RawPhoto("the array", from_array(source, "the array"))
    raise InputError(
        f"A photo is a path, a PIL image or an array, not {type(source).__name__}; identify() makes an Identity."
    )


def fit(photo: Photo, name: str) -> Photo:
    """Reduce to LONG_EDGE; refuse what is too small to hold a face."""
    height, width = photo.shape[:2]
    factor = min(1.0, LONG_EDGE / max(height, width))
    if factor < 1:
        height, width = int(height * factor), int(width * factor)
    if min(height, width) < MIN_SIDE:
        size = f"{photo.shape[1]} x {photo.shape[0]} pixels"
        raise InputError(f"{name}: {size} is too small or too narrow for a face; give at least {MIN_SIDE} on each side")
    if factor < 1:
        return cv2.resize(photo, (width, height), interpolation=cv2.INTER_LANCZOS4)
    return np.ascontiguousarray(photo)


def read(name: str) -> bytes:
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            raise InputError(f"{name}: is a folder; give the photo in it")
        if not path.is_file():
            raise InputError(f"{name}: no such file; check the path")
        if path.stat().st_size > MAX_FILE:
            raise InputError(f"{name}: more than {MAX_FILE >> 20} MiB; give a photo")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); check its permissions") from error


def download(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            data = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{address}: cannot be fetched ({reason}); download the photo and give its path") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{address}: more than {MAX_BYTES >> 20} MiB; download the photo and give its path")
    return data


def decode(content: bytes, name: str) -> Photo:
    """An encoded file to pixels."""
    if not content:
        raise InputError(f"{name}: is empty (0 bytes); save or download it again")
    try:
        with warnings.catch_warnings():
            # Pillow warns from MAX_PIXELS on; from_pil refuses there.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                return from_pil(image, name)
    except Image.DecompressionBombError as error:
        raise too_large(name) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: is not an image that can be read; give a JPEG, PNG or WebP file") from error
    except InputError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in a decoder: OSError, SyntaxError, ValueError, ...
        raise InputError(f"{name}: is damaged ({error}); save or download it again") from error


def too_large(name: str, size: tuple[int, int] | None = None) -> InputError:
    given = f"{size[0]} x {size[1]} is" if size else "is"
    return InputError(f"{name}: {given} more than {MAX_PIXELS // 10**6} megapixels; reduce it first")


def from_pil(image: Image.Image, name: str) -> Photo:
    """Any mode of Pillow's to RGB."""
    if image.width * image.height > MAX_PIXELS:
        raise too_large(name, image.size)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return from_array(np.asarray(image).astype(np.uint16), name)
    if image.mode in ("I", "F"):
        return from_array(np.asarray(image), name)
    if image.has_transparency_data:
        return over_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def from_array(array: NDArray[Any], name: str) -> Photo:
    """Numbers of any usual kind to RGB."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        shape = list(array.shape[:2]) if array.ndim == 3 and array.shape[2] == 1 else list(array.shape)
        raise InputError(f"{name}: has the shape {shape}; give [height, width, 3] with the channels last")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise too_large(name, (array.shape[1], array.shape[0]))
    pixels = to_bytes(array, name)
    if pixels.shape[2] == 4:
        return over_white(pixels)
    return pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)


def to_bytes(array: NDArray[Any], name: str) -> Photo:
    """The values of an array to 0 ... 255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 -> 255, rounded
    low, high = float(array.min()), float(array.max())
    if array.dtype == bool or (array.dtype.kind == "f" and low >= 0 and high <= 1):
        return (array.astype(np.float32) * 255).round().astype(np.uint8)
    if low >= 0 and high <= 255:
        return array.round().astype(np.uint8)
    if array.dtype.kind in "iu" and low >= 0 and high <= 65535:
        return to_bytes(array.astype(np.uint16), name)  # Pillow's mode "I" of a 16-bit file
    raise InputError(f"{name}: has values from {low:g} to {high:g}; give 0 to 255 as uint8, or 0 to 1 as float")


def over_white(rgba: Photo) -> Photo:
    """uint8 [H, W, 4] laid on white, rounded."""
    alpha = rgba[..., 3:].astype(np.uint32)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
