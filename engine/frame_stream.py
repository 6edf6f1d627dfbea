"""Frames that are read while they are decoded."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from .device import current

if TYPE_CHECKING:
    from .recovery import Run


class FrameStream:
    """Frames of one video, decoded as they are read, within the run that they are of. `close` ends it early; its
    checkpoint stays then.

    Args:
        decode: gives the frames from the first one on.
    """

    def __init__(self, run: "Run", decode: Callable[[], Iterator[Any]]):
        self._run, self._decode = run, decode
        self._frames: Iterator[Any] | None = None
        self._count, self._open = 0, True

    def __iter__(self) -> "FrameStream":
        return self

    def __next__(self) -> Any:
        if not self._open:
            raise StopIteration
        with current(self._run.engine.device):
            try:
                frame = self._run.attempt(self._next, self._again)
            except BaseException:
                self.close()
                raise
            if frame is None:
                self._end(complete=True)
                raise StopIteration
        self._count += 1
        return frame

    def _next(self) -> Any:
        self._run.enter()  # between two frames another run may have had the device
        if self._frames is None:
            self._frames = islice(self._decode(), self._count, None)
        return next(self._frames, None)

    def _again(self) -> None:
        self._frames = None

    def close(self) -> None:
        """Read no more."""
        self._end(complete=False)

    def _end(self, complete: bool) -> None:
        if self._open:
            self._open, self._frames = False, None
            self._run.ended(self, complete)

    def __del__(self) -> None:
        self.close()
