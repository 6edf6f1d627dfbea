"""What generate returns, and how it is saved."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from . import mp4
from .errors import InputError
from .files import file_aside
from .stats import Stats


@dataclass
class Video:
    """A generated video.

    Attributes:
        frames: uint8 [F, H, W, 3]; with output_type "np" float32 in [0, 1], with "pt" a tensor [F, 3, H, W], with "pil"
            a list of images, with "latent" None. With "stream" an iterator over frames uint8 [H, W, 3] that decodes as
            it is read, once.
        fps: frames per second that the model was trained at.
        stats: times and peaks; with "stream" without the decode until all frames have been read.
        latents: [F, 16, h, w], with output_type "latent", else None.
        shape: F, H, W; with "stream" of the frames that have been read.
    """

    frames: Any
    fps: int
    stats: Stats
    latents: Tensor | None = None
    shape: tuple[int, int, int] | None = None

    @classmethod
    def several(cls, frames: Any, latents: Tensor, fps: int, stats: Callable[[], Stats]) -> "list[Video]":
        """The videos of a batch: from frames per video, or from latents [b, F, 16, h, w] when there are none."""
        if frames is None:
            return [cls(None, fps, stats(), video) for video in latents]
        videos = [cls(each, fps, stats()) for each in frames]
        for video in videos:
            if isinstance(video.frames, Iterator):
                video.frames = video._read(video.frames, stats)
            elif isinstance(video.frames, list):
                video.shape = (len(video.frames), video.frames[0].height, video.frames[0].width)
            else:
                size = video.frames.shape
                video.shape = (size[0], *(size[2:] if isinstance(video.frames, Tensor) else size[1:3]))
        return videos

    def _read(self, frames: Iterator[np.ndarray], stats: Callable[[], Stats]) -> Iterator[np.ndarray]:
        """The frames, with the time that they took in the stats when the last has been read."""
        spent, count = 0.0, 0
        with closing(frames):  # type: ignore[type-var]
            while True:
                start = time.perf_counter()
                frame = next(frames, None)
                spent += time.perf_counter() - start
                if frame is None:
                    break
                count += 1
                self.shape = (count, frame.shape[0], frame.shape[1])
                yield frame
        self.stats = stats()
        self.stats.seconds["decode"] += spent

    def save(self, path: str | Path, fps: int | None = None) -> Path:
        """Write an mp4 (H.264, yuv420p) that browsers play; written aside and renamed. A stream is encoded while it is
        decoded.

        Raises:
            InputError: no frames (output_type="latent", or a stream that was read already), or a path that is not an
                .mp4.
        """
        path = Path(path)
        if self.frames is None:
            raise InputError('This video has latents only; generate with another output_type than "latent" to save it.')
        if path.suffix.lower() != ".mp4":
            raise InputError(f"{path} does not end in .mp4, the one format that is written.")
        frames = self.frames if isinstance(self.frames, Iterator) else iter(as_uint8(self.frames))
        first = next(frames, None)
        if first is None:
            raise InputError(f'{path}: the frames of this "stream" were read already; keep them, or save it at once.')
        with file_aside(path) as aside:
            mp4.write(aside, chain([first], frames), Fraction(fps or self.fps))
        return path


def as_uint8(frames: Any) -> np.ndarray:
    """Frames of any output type as uint8 [F, H, W, 3]."""
    if isinstance(frames, Tensor):
        frames = frames.float().permute(0, 2, 3, 1).cpu().numpy()
    frames = np.stack([np.asarray(frame) for frame in frames])
    return frames if frames.dtype == np.uint8 else (frames * 255).round().astype(np.uint8)
