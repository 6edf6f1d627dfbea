"""From whatever shows a person to pixels: RGB, upright, at most 1024 on the long edge."""

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError
from .download import download, is_address
from .pixels import FORMATS, Photo, from_array, from_pil, too_large

LONG_EDGE = 1024  # as the reference
MIN_SIDE = 40  # below this no detector can see five key points
MAX_FILE = 1 << 30  # bytes; 16 bits of MAX_PIXELS are half of it


class Readable(Protocol):
    """An open file, as far as it is needed."""

    def read(self, size: int, /) -> bytes: ...


Source = str | os.PathLike[str] | bytes | bytearray | memoryview | Readable | Image.Image | NDArray[Any] | Tensor


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

    def full(self) -> Photo:
        """RGB, upright, at full size."""
        return decode(self.content, self.name) if isinstance(self.content, bytes) else self.content

    def pixels(self) -> Photo:
        """As load_photo returns them."""
        return fit(self.full(), self.name)


def load_photo(source: Source) -> Photo:
    """Read a photo.

    Args:
        source: a path, an http(s) address, the bytes of a file, an open file, a PIL image, an array [H, W] or
            [H, W, 1 | 3 | 4] (channels last, RGB), or a tensor like it or with the channels first, as torch has them.
            Values are uint8; uint16 over its full range; float in [0, 1] or in [0, 255].

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
    if isinstance(source, np.ndarray):
        return RawPhoto("the array", from_array(source, "the array"))
    if isinstance(source, Tensor):
        return RawPhoto("the tensor", from_array(to_array(source), "the tensor"))
    if isinstance(source, bytes | bytearray | memoryview):
        return RawPhoto("the bytes", bytes(source))
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if isinstance(name, str):
            return RawPhoto(name, download(name) if is_address(name) else read(name))
    if hasattr(source, "read"):
        return read_open(source)
    raise InputError(
        "A photo is a path, an address, bytes, an open file, a PIL image, an array or a tensor, not "
        f"{type(source).__name__}; identify() makes an Identity."
    )


def to_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor [H, W], [C, H, W], [1, C, H, W] or with the channels last, as an array with the channels last.

    Raises:
        InputError: it holds no numbers that can be read.
    """
    try:
        values = tensor.detach().cpu()
        array = (values.float() if values.is_floating_point() else values).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise InputError(f"the tensor: cannot be read ({error}); give pixels on a device") from error
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    return array


def read_open(file: Any) -> RawPhoto:
    """The bytes of an open file, from its beginning where it can go back, as Pillow reads one.

    Raises:
        InputError: it is open as text, closed, or longer than MAX_FILE.
    """
    given = getattr(file, "name", None)
    name = given if isinstance(given, str) else "the open file"
    try:
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)
        content = file.read(MAX_FILE + 1)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{name}: cannot be read ({error}); give its path or its bytes") from error
    if not isinstance(content, bytes):
        raise InputError(f"{name}: gives {type(content).__name__} instead of bytes; open it in binary mode")
    return RawPhoto(name, within_limit(content, name))


def within_limit(content: bytes, name: str) -> bytes:
    """Raises InputError for more than MAX_FILE bytes."""
    if len(content) > MAX_FILE:
        raise InputError(f"{name}: more than {MAX_FILE >> 20} MiB; give a photo")
    return content


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
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            raise InputError(f"{name}: is a folder; give the photo in it")
        if not path.is_file():
            raise InputError(f"{name}: no such file; check the path")
        if path.stat().st_size > MAX_FILE:
            raise InputError(f"{name}: more than {MAX_FILE >> 20} MiB; give a photo")
        return path.read_bytes()
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RuntimeError) as error:  # a null byte; the home of nobody
        raise InputError(f"{name}: cannot be read ({error}); check its name") from error


def decode(content: bytes, name: str) -> Photo:
    """An encoded file to pixels. Its size is checked before it is decoded."""
    if not content:
        raise InputError(f"{name}: is empty (0 bytes); save or download it again")
    Image.init()  # without it Pillow knows some of FORMATS only; what it was built without is not asked for
    formats = [each for each in FORMATS if each in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # Pillow warns from MAX_PIXELS on; from_pil refuses there.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as error:
        raise too_large(name) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: is not an image that can be read; give a JPEG, PNG or WebP file") from error
    except Exception as error:  # a damaged file can fail anywhere in a reader of headers
        raise InputError(f"{name}: is damaged ({error}); save or download it again") from error
    with image:
        return from_pil(image, name)
