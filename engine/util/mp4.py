"""Frames -> an mp4 file, encoded in one thread beside whatever makes the frames."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from numbers import Rational, Real
from pathlib import Path
from queue import Full, Queue
from typing import BinaryIO

import numpy as np

from ..errors import InputError, one_line, shown
from .files import check_place, unwritable

CRF = "17"  # x264's "visually lossless"; its default of 23 softens faces
AHEAD = 16  # frames that may wait for the encoder
PATIENCE = 0.05  # seconds between looks at whether the encoder still lives
RATES = Fraction(1, 1000), Fraction(1000)  # frames per second, the least and the most
# x264's rate control reads memory that it has not written where it has AVX-512 (mbtree), and no two files are the same.
REPEATABLE = "asm=avx2"
# 23.976 and 29.97 are fractions of at most this denominator, and so are 24000/1001 and 30000/1001.
DENOMINATOR = 1001


def frame_rate(fps: object) -> Fraction:
    """Frames per second as the nearest fraction that an mp4 states well.

    Raises:
        InputError: no number, or one out of RATES.
    """
    rate = None
    if isinstance(fps, Real | Decimal) and not isinstance(fps, bool):
        with suppress(ValueError, OverflowError):  # of NaN and of infinity
            exact = Fraction(fps) if isinstance(fps, Rational | Decimal) else Fraction(float(fps))
            rate = exact.limit_denominator(DENOMINATOR)
    if rate is None or not RATES[0] <= rate <= RATES[1]:
        raise InputError(f"fps={shown(fps)} is no frame rate; give a number from {float(RATES[0]):g} to {RATES[1]}.")
    return rate


def check_target(target: Path) -> None:
    """Whether a video can be written at `target`, tried with a small one beside it that has no name.

    Raises:
        InputError: a place where it cannot be written.
    """
    frame = np.zeros((64, 64, 3), np.uint8)
    check_place(target, lambda file: _encode(file, iter([frame]), Fraction(8)))


def write(path: Path, frames: Iterable[np.ndarray], fps: Fraction, name: Path | None = None, comment: str = "") -> None:
    """Write frames uint8 [H, W, 3] as H.264, yuv420p, which browsers play; the same frames give the same file. Returns
    when the file is whole.

    Args:
        name: what errors call the file, where `path` is not its last place.
        comment: of the file's metadata.

    Raises:
        InputError: the file cannot be written or the frames not encoded.
        What `frames` raises; the encoder is stopped then.
    """
    waiting: Queue[np.ndarray | None] = Queue(AHEAD)
    with ThreadPoolExecutor(1, "mp4") as pool:
        encoder = pool.submit(_encode_to, path, _taken(waiting), fps, name or path, comment)
        try:
            for frame in frames:
                if not _hand_over(waiting, frame, encoder):
                    break
        finally:
            _hand_over(waiting, None, encoder)
        encoder.result()


def _hand_over(waiting: "Queue[np.ndarray | None]", frame: np.ndarray | None, encoder: "Future[None]") -> bool:
    """Put a frame in the queue; False when the encoder has ended, so that nobody would take it."""
    while not encoder.done():
        try:
            waiting.put(frame, timeout=PATIENCE)
            return True
        except Full:
            pass
    return False


def _taken(waiting: "Queue[np.ndarray | None]") -> Iterator[np.ndarray]:
    while (frame := waiting.get()) is not None:
        yield frame


def _encode_to(path: Path, frames: Iterator[np.ndarray], fps: Fraction, name: Path, comment: str) -> None:
    from av.error import FFmpegError

    try:
        # A file of ours: FFmpeg would take a name with a colon for an address.
        with path.open("wb") as file:
            _encode(file, frames, fps, comment)
    except OSError as error:
        raise unwritable(name, error) from error
    except FFmpegError as error:
        raise InputError(f"{name}: the frames cannot be encoded ({error}); sides have to be even.") from error


def _encode(file: BinaryIO, frames: Iterator[np.ndarray], fps: Fraction, comment: str = "") -> None:
    import av
    import torch

    options = {"crf": CRF}
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        options["x264-params"] = REPEATABLE
    stream = None
    with av.open(file, "w", format="mp4") as container:
        if comment:
            container.metadata["comment"] = comment
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options=options)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def read_comment(path: Path) -> str:
    """The comment of a file's metadata, empty where it has none.

    Raises:
        InputError: no file that FFmpeg reads.
    """
    import av
    from av.error import FFmpegError

    try:
        # A file of ours: FFmpeg would take a name with a colon for an address, and follow what a playlist names.
        with path.open("rb") as file, av.open(file, format="mov,mp4,m4a,3gp,3g2,mj2") as container:
            return str(container.metadata.get("comment", ""))
    except (FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path} is no mp4 that can be read ({one_line(error, 120)}).") from None
