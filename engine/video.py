"""What generate returns, how it is saved, and where its time and memory went."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .postprocess import MINTERPOLATE, Interpolate, Upscale, enlarging, interpolation
from .util import mp4
from .util import video_files as files
from .util.files import as_path


@dataclass
class Stats:
    """Where the time and the memory of a video went.

    Attributes:
        seconds: per stage, in the order of the work.
        steps: seconds of each denoising step.
        calls: how often each graph ran.
        modes: what was chosen: CFG mode, dtype, device.
        peak_bytes: the most device memory reserved during the run; on a CPU the peak resident set of the process.
        allocated_bytes: the most of it that tensors took at once; 0 on a CPU.
        predicted_bytes: the peak that the plan predicted; None without a plan.
        stage_bytes: the most device memory reserved in each stage of the plan of the memory; empty where weights stay
            on the device, and on a CPU.
        streamed_bytes: weights copied to the device.
        stalls: seconds of each denoising step in which it waited for weights; empty where several videos were made
            together.
        scores: by seed, where several videos were compared (ConsisID.generate, best_of); None for one without a face.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    peak_bytes: int = 0
    allocated_bytes: int = 0
    predicted_bytes: int | None = None
    stage_bytes: dict[str, int] = field(default_factory=dict)
    streamed_bytes: int = 0
    stalls: list[float] = field(default_factory=list)
    scores: dict[int, float | None] = field(default_factory=dict)

    def summary(self) -> str:
        """One line: where the time went."""
        stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        per_step = (
            f" ({len(self.steps)} steps of {sorted(self.steps)[len(self.steps) // 2]:.3f} s)" if self.steps else ""
        )
        text = f"{sum(self.seconds.values()):.2f} s: {stages}{per_step}; peak {self.peak_bytes / 2**30:.2f} GiB"
        on_cpu = self.modes.get("device") == "cpu"
        if on_cpu:
            text += " of the whole process"
        if "weights from" in self.modes:
            text += f", weights from {self.modes['weights from']}"
        if self.predicted_bytes is not None:
            whose = "for weights and tensors alone " if on_cpu else ""
            text += f" ({whose}predicted {self.predicted_bytes / 2**30:.2f} GiB)"
        if self.streamed_bytes:
            text += f", {self.streamed_bytes / 1e9:.2f} GB streamed, steps stalled {sum(self.stalls):.3f} s"
        return text


@dataclass
class Video:
    """A generated video.

    Attributes:
        frames: uint8 [F, H, W, 3]; with output_type "np" float32 in [0, 1], with "pt" a tensor [F, 3, H, W], with "pil"
            a list of images, with "latent" None. With "stream" an iterator over frames uint8 [H, W, 3] that decodes as
            it is read, once. diffusers' export_to_video takes those of "np" and "pil", and not bytes; `save` takes all.
        fps: frames per second that the model was trained at.
        stats: times and peaks; with "stream" without the decode until all frames have been read.
        latents: [F, 16, h, w], with output_type "latent", else None.
        shape: F, H, W; with "stream" of the frames that have been read.
        settings: what it was made with, as run/settings.py says; `save` writes it into an mp4.
    """

    frames: Any
    fps: int
    stats: Stats
    latents: Tensor | None = None
    shape: tuple[int, int, int] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    _taken: int = field(default=0, init=False, repr=False)  # frames that were read of a "stream"

    @classmethod
    def several(
        cls, frames: Any, latents: Tensor, fps: int, stats: Callable[[], Stats], settings: Sequence[dict[str, Any]]
    ) -> "list[Video]":
        """The videos of a batch: from frames per video, or from latents [b, F, 16, h, w] when there are none."""
        if frames is None:
            return [
                cls(None, fps, stats(), *each) for each in zip(latents, [None] * len(settings), settings, strict=True)
            ]
        videos = [cls(each, fps, stats(), settings=own) for each, own in zip(frames, settings, strict=True)]
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
                self._taken = count
                self.shape = (count, frame.shape[0], frame.shape[1])
                yield frame
        self.stats = stats()
        self.stats.seconds["decode"] += spent

    def save(
        self, path: str | PathLike[str], fps: float | Fraction | None = None, *,
        interpolate: Interpolate | bool | None = None, upscale: Upscale | None = None,
    ) -> Path:  # fmt: skip
        """Write the video; a file is written aside and renamed. A stream is encoded while it is decoded.

        Args:
            path: by its ending an mp4 (H.264, yuv420p) that browsers play and that holds `settings`; an animated .gif
                or .webp; a .png or .jpg of the frame in the middle; or with a number in its name, as frame_%03d.png,
                a picture of every frame.
            fps: frames per second, default those of the model. 29.97 is 2997/100; for NTSC give Fraction(30000, 1001).
            interpolate: make frames in between, so that the video lasts as long at `fps` as at the model's rate: True
                or "minterpolate" for ffmpeg's filter, an .onnx file of RIFE, or a function; see
                postprocess.interpolation. Without it other `fps` make it faster or slower.
            upscale: a factor, a file of Real-ESRGAN, or a function; see postprocess.enlarging.

        Raises:
            InputError: no frames (output_type="latent", or a stream of which frames were read already), no frame rate,
                an unknown ending, what cannot interpolate or upscale; WriteError: a file that cannot be written.
        """
        path = as_path(path)
        own = mp4.frame_rate(self.fps)
        rate = own if fps is None else mp4.frame_rate(fps)
        if self.frames is None:
            raise InputError('This video has latents only; generate with another output_type than "latent" to save it.')
        how = MINTERPOLATE if interpolate is True else interpolate
        between = None if how is None or how is False else interpolation(how)
        larger = None if upscale is None else enlarging(upscale)
        if between is not None and fps is None:
            raise InputError("interpolate= makes frames for another frame rate; give fps too, such as fps=16.")
        files.check_target(path, rate)
        if isinstance(self.frames, Iterator) and self._taken:
            raise InputError(
                f'{path}: {self._taken} frames of this "stream" were read already and would be missing; keep what is '
                "read, or save it before anything is read."
            )
        frames = self.frames if isinstance(self.frames, Iterator) else iter(as_uint8(self.frames))
        if files.is_one_picture(path):
            frames = files.middle(frames)
        elif between is not None and rate != own:
            frames = between(frames, own, rate)
        if larger is not None:
            frames = map(larger, frames)
        first = next(frames, None)
        if first is None:
            raise InputError(f"{path}: there are no frames to write; the stream was closed.")
        named = {"fps": float(rate), "interpolate": _name(how), "upscale": _name(upscale)}
        files.write(path, chain([first], frames), rate, {**named, **self.settings} if self.settings else {})
        return path


def _name(step: Any) -> Any:
    """A step behind the decoder, for the settings of a file."""
    return (
        step
        if step is None or isinstance(step, bool | int | float | str)
        else "a function"
        if callable(step)
        else str(step)
    )


def as_uint8(frames: Any) -> np.ndarray:
    """Frames of any output type as uint8 [F, H, W, 3]."""
    if isinstance(frames, Tensor):
        frames = frames.float().permute(0, 2, 3, 1).cpu().numpy()
    frames = np.stack([np.asarray(frame) for frame in frames])
    return frames if frames.dtype == np.uint8 else (frames * 255).round().astype(np.uint8)


def to_unit(frames: Tensor) -> Tensor:
    """Frames [n, 3, H, W] in [-1, 1] -> [n, H, W, 3] in [0, 1], clamped."""
    return (frames * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def to_uint8(frames: Tensor) -> Tensor:
    """Frames [n, 3, H, W] in [-1, 1] -> uint8 [n, H, W, 3], rounded, on the device that they are on."""
    return (to_unit(frames).float() * 255).round().to(torch.uint8)
