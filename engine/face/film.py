"""The frames of a video file, in which a person is looked for."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from .pixels import FORMATS

PICTURES = (*FORMATS, "ICO")


def is_picture(path: Path) -> bool:
    """Whether a file is a picture of one frame: FFmpeg reads some of these as videos."""
    Image.init()
    try:
        with Image.open(path, formats=[each for each in PICTURES if each in Image.OPEN]) as image:
            return getattr(image, "n_frames", 1) == 1
    except Exception:  # another file, or one that can fail anywhere in a reader of headers
        return False


def read_video(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video file, uint8 [H, W, 3] BGR.

    Raises:
        InputError: a file that is not there, is no video, a picture, or has no frames.
    """
    import av

    if not path.is_file():
        raise InputError(f"{path}: no such video.")
    picture, count = InputError(f"{path} is a picture; --video takes a video, --image the photo."), 0
    if is_picture(path):
        raise picture
    try:
        # A file of ours: FFmpeg would take a name with a colon for an address.
        with path.open("rb") as file, av.open(file) as container:
            if container.format.name == "image2" or container.format.name.endswith("_pipe"):  # FFmpeg's for pictures
                raise picture
            if not container.streams.video:
                raise InputError(f"{path} has no pictures; give a video.")
            for frame in container.decode(video=0):
                count += 1
                yield frame.to_ndarray(format="bgr24")
            if count == 1 and container.format.name == "mjpeg":  # a JPEG in something that is no video, such as a PDF
                raise picture
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path} cannot be read as a video ({error}).") from None
    if not count:
        raise InputError(f"{path} has no frames; give a video.")
