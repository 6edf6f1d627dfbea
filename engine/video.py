"""What generate returns, and how it is saved."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .errors import InputError
from .files import file_aside
from .stats import Stats

CRF = "17"  # x264's "visually lossless"; its default of 23 softens faces


@dataclass
class Video:
    """A generated video.

    Attributes:
        frames: uint8 [F, H, W, 3]; with output_type "np" float32 in [0, 1], with "pt" a tensor [F, 3, H, W], with "pil"
            a list of images, with "latent" None.
        fps: frames per second that the model was trained at.
        stats: times and peaks.
        latents: [F, 16, h, w], with output_type "latent", else None.
    """

    frames: Any
    fps: int
    stats: Stats
    latents: Tensor | None = None

    @classmethod
    def several(cls, frames: Any, latents: Tensor, fps: int, stats: Stats) -> "list[Video]":
        """The videos of a batch: from frames per video, or from latents [b, F, 16, h, w] when there are none."""
        if frames is None:
            return [cls(None, fps, stats, video) for video in latents]
        return [cls(video, fps, stats) for video in frames]

    def save(self, path: str | Path, fps: int | None = None) -> Path:
        """Write an mp4 (H.264, yuv420p) that browsers play; written aside and renamed.

        Raises:
            InputError: no frames (output_type="latent"), or a path that is not an .mp4.
        """
        import av

        path = Path(path)
        if self.frames is None:
            raise InputError('This video has latents only; generate with another output_type than "latent" to save it.')
        if path.suffix.lower() != ".mp4":
            raise InputError(f"{path} does not end in .mp4, the one format that is written.")
        frames = as_uint8(self.frames)
        with file_aside(path) as aside, av.open(str(aside), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps or self.fps), options={"crf": CRF})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        return path


def as_uint8(frames: Any) -> np.ndarray:
    """Frames of any output type as uint8 [F, H, W, 3]."""
    if isinstance(frames, Tensor):
        frames = frames.float().permute(0, 2, 3, 1).cpu().numpy()
    frames = np.stack([np.asarray(frame) for frame in frames])
    return frames if frames.dtype == np.uint8 else (frames * 255).round().astype(np.uint8)
