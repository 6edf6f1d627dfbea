"""Frames -> a file of the kind that its ending says, with what the video was made with where the format has room."""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from . import mp4
from .files import atomic_file, check_place, unwritable

ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
NUMBERED = re.compile(r"%0?(\d{0,2})d")
ENDINGS = (".mp4", *ANIMATIONS, *PICTURES)
SHORTEST = Fraction(1, 50)  # of a picture of a GIF: browsers show a shorter one for a tenth of a second
MOST = 2**20  # characters of settings


def check_target(target: Path, rate: Fraction | None = None) -> None:
    """Whether a video can be written at `target`, tried with what will write it.

    Args:
        rate: frames per second, where they are known.

    Raises:
        InputError: an unknown ending, or a rate that a format does not have; WriteError: a place that cannot be
            written.
    """
    kind = target.suffix.lower()
    if kind == ".gif" and rate is not None and 1 / rate < SHORTEST:
        raise InputError(f"{target}: a GIF shows 50 frames per second at most, not {float(rate):g}; write a .webp.")
    if kind == ".mp4":
        mp4.check_target(target)
    elif kind in ANIMATIONS or kind in PICTURES:
        check_picture(_numbered(target, 0))
    else:
        raise InputError(f"{target} ends in none of {', '.join(ENDINGS)}, which say what is written.")


def write(target: Path, frames: Iterator[np.ndarray], rate: Fraction, settings: Mapping[str, Any]) -> None:
    """Write frames uint8 [H, W, 3]; each file whole or not at all.

    Args:
        frames: for one picture, that one.
        rate: frames per second.
        settings: values of JSON, for the metadata of an mp4.

    Raises:
        InputError: an unknown ending, or sides that a format does not take; WriteError. What `frames` raises.
    """
    kind = target.suffix.lower()
    if kind == ".mp4":
        with atomic_file(target) as aside:
            mp4.write(aside, frames, rate, target, json.dumps(settings) if settings else "")
    elif NUMBERED.search(target.name):
        _write_all(target, frames)
    elif kind in ANIMATIONS:
        _write_animation(target, frames, rate)
    else:
        save_picture(Image.fromarray(next(frames)), target)


def is_one_picture(target: Path) -> bool:
    return target.suffix.lower() in PICTURES and not NUMBERED.search(target.name)


def middle(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The frame in the middle, or none of none."""
    found = list(frames)
    yield from found[len(found) // 2 :][:1]


def read_settings(file: Path) -> dict[str, Any]:
    """What `write` was given as settings.

    Raises:
        InputError: no mp4, or one that holds none.
    """
    text = mp4.read_comment(file)
    try:
        values = json.loads(text[:MOST])
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or "consisid" not in values:
        raise InputError(f"{file} does not say what it was made with; consisid writes that into every mp4.")
    return values


def _numbered(target: Path, number: int) -> Path:
    return target.with_name(NUMBERED.sub(lambda found: str(number).zfill(int(found[1] or 0)), target.name))


def _write_all(target: Path, frames: Iterator[np.ndarray]) -> None:
    """A picture of each frame; they take their names when the last has been made."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as aside:
            made = []
            for number, frame in enumerate(frames):
                made.append(Path(aside) / _numbered(target, number).name)
                save_picture(Image.fromarray(frame), made[-1])
            for path in made:
                path.replace(target.parent / path.name)
    except OSError as error:
        raise unwritable(target, error) from error


def _write_animation(target: Path, frames: Iterator[np.ndarray], rate: Fraction) -> None:
    kind = ANIMATIONS[target.suffix.lower()]
    # A GIF counts hundredths of a second: each picture ends at the hundredth that is nearest to its true end.
    unit = 10 if kind == "GIF" else 1
    pictures = [Image.fromarray(frame) for frame in frames]
    ends = [round(number * 1000 / rate / unit) * unit for number in range(len(pictures) + 1)]
    durations = [end - start for start, end in pairwise(ends)]

    def save(file: Any) -> None:
        options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "duration": durations, "loop": 0}
        pictures[0].save(file, kind, **options)

    with atomic_file(target) as aside, aside.open("wb") as file:
        _tried(save, file, target)


def picture_format(path: Path) -> str:
    """Pillow's name of the format that a picture's ending stands for.

    Raises:
        InputError: it stands for none that is written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(f"{path} cannot be written as a picture (unknown ending {path.suffix!r}); end it in .png.")
    return kind


def check_picture(path: Path) -> None:
    """Whether a picture can be written at `path`, tried with a small one that has no name; raises InputError."""
    kind = picture_format(path)
    check_place(path, lambda file: write_picture(Image.new("RGB", (64, 64)), file, kind, path))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Save a PIL image, whole or not at all; raises InputError."""
    with atomic_file(path) as aside, aside.open("wb") as file:
        write_picture(picture, file, picture_format(path), path)


def write_picture(picture: Image.Image, file: Any, kind: str, path: Path) -> None:
    """Write a PIL image into an open file; errors name `path`."""
    _tried(lambda file: picture.save(file, kind), file, path)


def _tried(save: Callable[[Any], None], file: Any, path: Path) -> None:
    try:
        save(file)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unwritable(path, error) from error
        # Of formats that take no such picture, or need a program that is not there.
        raise InputError(f"{path} cannot be written as a picture ({error}); end it in .png.") from error
