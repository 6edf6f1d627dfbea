"""Videos of an engine from a queue: what `consisid.engine.many` does, one after the other.

A stand-in that makes one video at a time; requests do not share the loop.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition
from typing import Any

from ..api import ConsisID
from ..errors import InputError


class QueueFull(InputError):
    """As many videos wait as may."""


class Stopped(Exception):
    """A video was cancelled."""


class VideoRequest:
    """The person, the prompt and the options of ConsisID.generate."""

    def __init__(self, person: Any, prompt: str, **options: Any):
        self.person, self.prompt, self.options = person, prompt, options


@dataclass(eq=False)
class VideoJob:
    """A video in a queue."""

    request: VideoRequest
    queue: "VideoQueue"
    state: str = "waiting"
    step: int = 0
    steps: int = 0
    on_step: Callable[["VideoJob", int, Any], None] | None = None
    video: Any = None
    error: Exception | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        self.queue.cancel(self)


class VideoQueue:
    """What waits, by priority."""

    def __init__(self, limit: int = 64):
        self.limit = limit
        self._changed, self._closed = Condition(), False
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, VideoJob]] = []
        self._ended: list[VideoJob] = []

    def submit(self, request: VideoRequest, priority: int = 0) -> VideoJob:
        with self._changed:
            if len(self._waiting) >= self.limit:
                raise QueueFull(f"{self.limit} videos wait already; try again later.")
            job = VideoJob(request, self, steps=request.options.get("num_inference_steps", 50))
            heapq.heappush(self._waiting, (-priority, next(self._numbers), job))
            self._changed.notify_all()
            return job

    def cancel(self, job: VideoJob) -> None:
        with self._changed:
            job.cancelled = True
            for entry in self._waiting:
                if entry[2] is job:
                    self._waiting.remove(entry)
                    heapq.heapify(self._waiting)
                    job.state = "cancelled"
                    self._ended.append(job)
                    self._changed.notify_all()
                    return

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def next(self) -> VideoJob | None:
        """The next to make, or one that ended while it waited; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._closed)
            if self._ended:
                return self._ended.pop(0)
            if self._waiting:
                job = heapq.heappop(self._waiting)[2]
                job.state = "running"
                return job
            return None


def generate_many(engine: ConsisID, queue: VideoQueue) -> Iterator[VideoJob]:
    """Jobs of the queue as they end, until it is closed."""
    while (job := queue.next()) is not None:
        if job.state == "running":
            make(engine, job)
        yield job


def make(engine: ConsisID, job: VideoJob) -> None:
    def after_step(_engine: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        job.step = step + 1
        if job.on_step is not None:
            job.on_step(job, step, tensors["latents"])
        if job.cancelled:
            raise Stopped
        return tensors

    request = job.request
    job.state = "running"
    if not job.cancelled:
        with suppress(Stopped):
            try:
                job.video = engine.generate(
                    request.person, request.prompt, **request.options, callback_on_step_end=after_step
                )
                job.state = "done"
                return
            except Stopped:
                raise
            except Exception as error:
                job.error, job.state = error, "failed"
                return
    job.state = "cancelled"
