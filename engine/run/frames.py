"""Frames that are read while they are decoded."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor

from ..decode.frames import finish
from ..util.turns import turn_of
from .recovery import attempt
from .run import Run


def decoded(run: Run, latents: Tensor) -> Any:
    """Frames per video of latents [b, F, 16, h, w] (unscaled), see decode.frames.finish; iterators become parts of the
    run.

    After running out of memory these go on as the next smaller plan says, behind the frames that were read.
    """
    if run.options.output_type != "stream":
        return _finish(run, latents)
    found = [FrameStream(run, partial(_entry, run, latents, index)) for index in range(run.request.batch)]
    run.stream(found)
    return found


def _finish(run: Run, latents: Tensor) -> Any:
    modes = run.engine.decoders(run.request.shape, run.owner)
    return finish(run.networks, latents, run.options.output_type, *run.decoding, modes)


def _entry(run: Run, latents: Tensor, index: int) -> Iterator[Any]:
    found: Iterator[Any] = _finish(run, latents)[index]
    return found


class FrameStream:
    """Frames of one video, decoded as they are read, within the run that they are of. The device is taken for each
    frame, and free for others in between. `close` ends it early; its checkpoint stays then.

    Args:
        decode: gives the frames from the first one on.
    """

    def __init__(self, run: Run, decode: Callable[[], Iterator[Any]]):
        self._run, self._decode = run, decode
        self._frames: Iterator[Any] | None = None
        self._count, self._open = 0, True

    def __iter__(self) -> "FrameStream":
        return self

    def __next__(self) -> Any:
        with self._run.engine.turn():
            if not self._open:
                raise StopIteration
            try:
                frame = attempt(self._run, self._next, self._again)
            except BaseException:
                self._end(complete=False)
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
        if self._open:
            with self._run.engine.turn():
                self._end(complete=False)

    def _end(self, complete: bool) -> None:
        if self._open:
            self._open, self._frames = False, None
            self._run.ended(self, complete)

    def __del__(self) -> None:
        # In whatever thread it happens: waiting for a turn there could be waiting for ever.
        if self._open and self._run.engine.process == os.getpid():
            turn_of(self._run.engine.device).soon(partial(self._end, complete=False))
