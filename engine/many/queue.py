"""Where requests wait."""

from collections.abc import Iterable, Iterator, Mapping
from threading import Condition
from typing import Any

from ..errors import InputError, shown
from .jobs import Job, VideoRequest


class QueueFull(InputError):
    """As many requests wait as may."""


class VideoQueue:
    """Requests that wait for ConsisID.generate_many, from any thread; `close` it when no more will come.

    Args:
        limit: so many may wait.
    """

    def __init__(self, limit: int = 64):
        self.limit = limit
        self._waiting: list[Job] = []
        self._closed = False
        self._changed = Condition()

    def submit(self, request: Any, priority: int = 0) -> Job:
        """Let a request wait.

        Args:
            request: a VideoRequest, or a mapping with its arguments.

        Raises:
            InputError: what is no request, or the queue is closed; QueueFull.
        """
        job = Job(VideoRequest.of(request), priority)
        with self._changed:
            if self._closed:
                raise InputError("The queue is closed; open another one.")
            if len(self._waiting) >= self.limit:
                raise QueueFull(f"{self.limit} requests wait already; try again when some have ended.")
            self.put(job)
        return job

    def put(self, job: Job) -> None:
        """Let a job wait, whatever the limit: behind those of its priority, or a job that had begun before them."""
        with self._changed:
            least = job.priority if job.state == "waiting" else job.priority + 1
            behind = [other.priority >= least for other in self._waiting]
            self._waiting.insert(behind.index(False) if False in behind else len(behind), job)
            job.state = "waiting"
            self._changed.notify_all()

    def close(self) -> None:
        """No more will come; what waits is still made."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self) -> list[Job]:
        """Those that wait, in the order in which they will begin."""
        with self._changed:
            return list(self._waiting)

    def take(self, job: Job) -> None:
        """A job waits no more."""
        with self._changed:
            self._waiting.remove(job)

    def dropped(self) -> list[Job]:
        """Those that were cancelled while they waited, which wait no more."""
        with self._changed:
            found = [job for job in self._waiting if job.cancelling]
            self._waiting = [job for job in self._waiting if not job.cancelling]
            return found

    def refill(self) -> None:
        """Before a job is looked for."""

    def abandon(self) -> None:
        """Nobody reads the jobs any more."""

    def rest(self, seconds: float) -> None:
        """Wait until a job waits or the queue is closed, so many seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, seconds)


class Feed(VideoQueue):
    """Requests of an iterable, which is asked for no more of them than will soon begin. What is no request becomes a
    job that fails.

    Args:
        ahead: so many wait at most.
    """

    def __init__(self, requests: Iterable[Any], ahead: int):
        super().__init__(ahead)
        self._requests: Iterator[Any] = iter(requests)

    def abandon(self) -> None:
        self.close()
        for job in self.waiting():
            self.take(job)
            job.end("cancelled")

    def refill(self) -> None:
        while len(self) < self.limit and not self.closed:
            try:
                request = next(self._requests)
            except StopIteration:
                self.close()
                return
            try:
                job = Job(VideoRequest.of(request))
            except InputError as error:
                job = Job(None)
                job.error = error
            self.put(job)


def queue_of(requests: Any, ahead: int) -> VideoQueue:
    """The queue that was given, or one that is fed from an iterable of requests; raises InputError."""
    if isinstance(requests, VideoQueue):
        return requests
    if not isinstance(requests, Iterable) or isinstance(requests, str | bytes | Mapping | VideoRequest):
        raise InputError(f"requests={shown(requests)} are neither a VideoQueue nor several requests.")
    return Feed(requests, ahead)
