"""A request for a video, and what becomes of it."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from threading import Event
from typing import Any

from torch import Tensor

from ..errors import InputError, shown
from ..face.extractor import Photo
from ..face.identity import Identity
from ..run.options import Options
from ..run.person import person_of
from ..video import Video

ENDED = ("done", "failed", "cancelled")


class VideoRequest:
    """What ConsisID.generate is asked for: its arguments, by the same names.

    Args:
        identity: the person, or a photo.
        prompt: what the person does.
        aligned: the photo is an aligned face crop already.
        others: of generate.

    Raises:
        InputError: nobody, or an argument that generate does not have.
    """

    def __init__(
        self, identity: Identity | Photo | None = None, prompt: str | Sequence[str] | None = None, *,
        image: Photo | None = None, id_cond: Tensor | None = None, id_vit_hidden: Sequence[Tensor] | None = None,
        kps_cond: Any = None, aligned: bool = False, **others: Any,
    ):  # fmt: skip
        unknown = [name for name in others if name not in Options.__dataclass_fields__]
        if unknown:
            raise InputError(f"A video has no {shown(unknown[0])}; a request takes the arguments of generate.")
        self.person = person_of(identity, image, id_cond, id_vit_hidden, kps_cond)
        self.aligned = aligned
        self.options = Options(prompt, **others)

    @classmethod
    def with_options(cls, person: Any, options: Options, aligned: bool = False) -> "VideoRequest":
        """A request from options that are put together already."""
        found = cls(person, options.prompt, aligned=aligned)
        found.options = options
        return found

    @classmethod
    def of(cls, value: Any) -> "VideoRequest":
        """A request, or a mapping with its arguments; raises InputError."""
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return cls(**value)
        if not isinstance(value, cls):
            raise InputError(f"{shown(value)} is no request; make one with VideoRequest(person, prompt).")
        return value


class Job:
    """A request that was taken. It may be read and cancelled from any thread.

    Attributes:
        request: None where what was given is none.
        priority: jobs of a higher one begin first, of the same in the order in which they came.
        state: "waiting", "running", "done", "failed" or "cancelled".
        step, steps: finished steps of the denoising loop, and all; 0 before it begins.
        video: when it is done; a list where the request was for several.
        error: when it has failed.
        on_step: called with (job, step, latents [b, F, 16, h, w]) after each step, in the thread that computes. What it
            raises fails the job.
    """

    def __init__(self, request: VideoRequest | None, priority: int = 0):
        self.request, self.priority = request, priority
        self.state, self.step, self.steps = "waiting", 0, 0
        self.video: Any = None
        self.error: Exception | None = None
        self.on_step: Callable[[Job, int, Tensor], None] | None = None
        self._ended, self._cancelled = Event(), Event()

    def cancel(self) -> None:
        """Make it end: at once where it waits, else after the present step. One that has ended stays as it is."""
        self._cancelled.set()

    @property
    def cancelling(self) -> bool:
        """Whether somebody wants it to end."""
        return self._cancelled.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, `timeout` seconds at most; whether it has."""
        return self._ended.wait(timeout)

    def result(self, timeout: float | None = None) -> "Video | list[Video]":
        """The video.

        Raises:
            TimeoutError: it has not ended in time. concurrent.futures.CancelledError. What it failed with.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"The video is not done after {timeout} s; it is {self.state}, step {self.step}.")
        if self.error is not None:
            raise self.error
        if self.state == "cancelled":
            raise CancelledError("The video was cancelled.")
        found: Video | list[Video] = self.video
        return found

    def end(self, state: str, video: Any = None, error: Exception | None = None) -> "Job":
        """It has ended, in one of ENDED; called by whoever computes it."""
        self.state, self.video, self.error = state, video, error
        self._ended.set()
        return self
