"""Prefetch of weights that several devices keep together: of what streams each has a part, and the others send theirs.

    copy stream     gather 0 | gather 1 |      (waits until call 0 has ended) gather 2 | ...
    compute stream           (waits for gather 0) call 0 | (for gather 1) call 1 | ...

Who gathers waits for all others. So all gather the same units in the same order, which they do inside `together`, where
each goes through the same units; outside it a unit comes from the host. The parts, and what does not stream, are read
from the host when the stage begins.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..memory.allocator import part_bytes
from ..memory.costs import Key
from .prefetch import Prefetcher


class Others(Protocol):
    """The devices that keep the other parts: parallel/exchange.py."""

    rank: int

    def gather(self, part: Tensor, buffer: Tensor) -> None:
        """Queue that the parts of all devices, uint8 [n] each, of which `part` is this one's, fill a buffer
        uint8 [n * devices] in the order of their ranks."""


@dataclass
class Gatherer(Prefetcher):
    """The units of one stage, of which what streams comes from several devices.

    Args:
        others: the other devices.
        holders: number of devices.
        fill_part: queues the copy of some of a unit's bytes into a buffer, from a position in the whole on.
    """

    others: Others = field(kw_only=True)
    holders: int = field(kw_only=True)
    fill_part: Callable[[Key, Tensor, int], None] = field(kw_only=True)
    _parts: dict[Key, Tensor] = field(default_factory=dict)
    _together: bool = False
    _end: int = 0

    @contextmanager
    def together(self, units: int | None = None) -> Iterator[None]:
        """A pass that all devices make, or its first units: all begin with nothing, whatever is in the ring, and nobody
        gathers what comes after it."""
        for slot in self._slots:
            slot.position = -1
        self._issued, self._current, self._together = 0, -1, True
        self._end = len(self.order) if units is None else units
        try:
            yield
        finally:
            self._together = False

    def begin(self, passes: int | None) -> None:
        self._allocate(self.order, self.buffers)
        self._parts = {key: self.copy_stream.buffer(self._part(key)) for key in self.order if key in self.streamed}
        self.copy_stream.copy_waits(self.copy_stream.used())
        for key in self.order:
            if key in self.streamed:
                self.fill_part(key, self._parts[key], self.others.rank * self._part(key))
            else:
                self._send(key)

    def expect(self, passes: int) -> None:
        """Passes begin one by one."""

    def close(self) -> None:
        super().close()
        self.copy_stream.compute_waits(self.copy_stream.copied())  # parts, which nobody has waited for
        self._parts = {}

    def _part(self, key: Key) -> int:
        return part_bytes(self.sizes[key], self.holders)

    def _issue(self) -> None:
        """Queue what the pass still needs, until no buffer is free."""
        count = len(self.order)
        end = self._end if self._together else count
        self._send_until(max(self._current, 0) // count * count + end)

    def _bring(self, key: Key, buffer: Tensor) -> None:
        if self._together:
            whole = buffer[: self.holders * self._part(key)]
            self.copy_stream.queue(lambda: self.others.gather(self._parts[key], whole))
        else:
            self.fill(key, buffer)
