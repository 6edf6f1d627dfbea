"""`consisid-bench ENGINE --identity --image PHOTO --video MP4`: is it still the same person?"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from consisid.engine import ConsisID
from consisid.engine.errors import FaceError, InputError
from consisid.engine.face.pixels import FORMATS
from consisid.engine.face.similarity import similarity

from ..core.tables import write_files

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


def measure_identity(engine: Path, image: Path, video: Path, output: Path) -> tuple[dict[str, Any], str]:
    """Write identity.json into `output`; return what it holds and a line about it."""
    opened = ConsisID.open(engine)
    result = similarity(opened.faces, opened.identify(image), read_video(video))
    if result.mean is None:
        raise FaceError(
            f"{video}: no face was found in any of {len(result.frames)} frames; give a video that shows one."
        )
    values = {"command": " ".join(sys.argv), "image": str(image), "video": str(video), **asdict(result)}
    write_files(output, {"identity.json": json.dumps(values, indent=1) + "\n"})
    return values, (
        f"{video}: ArcFace cosine {result.mean:.3f} on average, {result.lowest:.3f} at the lowest; no face in "
        f"{result.without_face} of {len(result.frames)} frames."
    )
