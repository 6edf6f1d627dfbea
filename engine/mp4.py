"""Frames -> an mp4 file, encoded in one thread beside whatever makes the frames."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from queue import Full, Queue

import numpy as np

CRF = "17"  # x264's "visually lossless"; its default of 23 softens faces
AHEAD = 16  # frames that may wait for the encoder
PATIENCE = 0.05  # seconds between looks at whether the encoder still lives


def write(path: Path, frames: Iterable[np.ndarray], fps: Fraction) -> None:
    """Write frames uint8 [H, W, 3] as H.264, yuv420p, which browsers play. Returns when the file is whole.

    Raises:
        What `frames` or the encoder raises; the other one is stopped then.
    """
    waiting: Queue[np.ndarray | None] = Queue(AHEAD)
    with ThreadPoolExecutor(1, "mp4") as pool:
        encoder = pool.submit(_encode, path, _taken(waiting), fps)
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


def _encode(path: Path, frames: Iterator[np.ndarray], fps: Fraction) -> None:
    import av

    stream = None
    with av.open(str(path), "w", format="mp4") as container:
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options={"crf": CRF})
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
