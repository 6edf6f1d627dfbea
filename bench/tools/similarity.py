"""`consisid-bench ENGINE --identity --image PHOTO --video MP4`: is it still the same person?

Cosine of the ArcFace embeddings of the photo and of the face in each frame, as the authors' evaluation has it
(ConsisID, arXiv:2411.17440, FaceSim-Arc). Frames in which SCRFD finds no face have no similarity; they are counted.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from consisid.engine import ConsisID, Identity
from consisid.engine.errors import FaceError, InputError
from consisid.engine.face.alignment import arcface_crop
from consisid.engine.face.extractor import Faces
from consisid.engine.face.pixels import FORMATS

from ..core.tables import write_files

PICTURES = (*FORMATS, "ICO")
EMBEDDING = 512  # of id_cond's 1280 numbers, the first come from ArcFace


@dataclass(frozen=True)
class Similarity:
    """Per frame the cosine to the photo, None where no face was found, and a summary of those that have one."""

    frames: list[float | None]
    mean: float
    lowest: float
    without_face: int


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


def compare(faces: Faces, person: Identity, video: Path) -> Similarity:
    """The similarity of every frame to a person; in each frame the largest face counts.

    Raises:
        InputError: no video; FaceError: no face in any frame.
    """
    reference = person.id_cond[0, :EMBEDDING]
    cosines: list[float | None] = []
    for frame in read_video(video):
        found = faces.scrfd(frame)
        if not len(found):
            cosines.append(None)
            continue
        points = found.points[int(np.argmax(found.areas))]
        embedding = torch.from_numpy(faces.arcface(arcface_crop(frame, points))).reshape(-1)
        cosines.append(float(torch.cosine_similarity(reference, embedding, dim=0)))
    seen = [cosine for cosine in cosines if cosine is not None]
    if not seen:
        raise FaceError(f"{video}: no face was found in any of {len(cosines)} frames; give a video that shows one.")
    return Similarity(cosines, statistics.fmean(seen), min(seen), len(cosines) - len(seen))


def measure_identity(engine: Path, image: Path, video: Path, output: Path) -> tuple[dict[str, Any], str]:
    """Write identity.json into `output`; return what it holds and a line about it."""
    opened = ConsisID.open(engine)
    result = compare(opened.faces, opened.identify(image), video)
    values = {"command": " ".join(sys.argv), "image": str(image), "video": str(video), **asdict(result)}
    write_files(output, {"identity.json": json.dumps(values, indent=1) + "\n"})
    return values, (
        f"{video}: ArcFace cosine {result.mean:.3f} on average, {result.lowest:.3f} at the lowest; no face in "
        f"{result.without_face} of {len(result.frames)} frames."
    )
