"""Prefetch of weights while the device computes: a ring of buffers, filled on a copy stream.

    copy stream     copy 0 | copy 1 |        (waits until call 0 has ended) copy 2 | ...
    compute stream           (waits for copy 0) call 0 | (for copy 1) call 1 | (for copy 2) call 2 | ...

Both waits are events on the device: from pinned memory the host issues copies and never waits. A copy from the page
cache returns when it is done, so it is issued after the call before it has been launched, and no earlier. Buffers are
allocated when a stage begins, those of its first units perhaps while the stage before ends; nothing is allocated in the
denoising loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..memory.costs import Key
from .copy_stream import CopyStream


@dataclass
class _Slot:
    """A buffer of the ring and whose weights are in it: the position in the endless order of execution."""

    buffer: Tensor
    position: int = -1
    ready: Any = None
    used: Any = None


@dataclass
class Prefetcher:
    """The units of one stage, in the order of execution, once per pass.

    A unit that is resident is copied once into memory of its own; the others pass through the ring. Copies are issued
    in the order of execution, as far ahead as buffers are free, and none that no expected pass needs.

    Args:
        order: the units of a pass.
        sizes: bytes of each.
        streamed: those that pass through the ring.
        buffers, buffer_bytes: of the ring.
        fill: queues the copies of a unit's weights into a buffer.
        drained: called when the last copy that the expected passes need is queued.
        blocks: whether the host waits for the copy of a unit.
    """

    copy_stream: CopyStream
    order: Sequence[Key]
    sizes: dict[Key, int]
    streamed: frozenset[Key]
    buffers: int
    buffer_bytes: int
    fill: Callable[[Key, Tensor], None]
    drained: Callable[[], None] = lambda: None
    blocks: Callable[[Key], bool] = lambda key: False
    passes: int | None = None
    _issued: int = 0
    _drained: bool = False
    _current: int = -1
    _reach: int = -1  # the last position whose copy the host may wait for now
    _home: dict[Key, Tensor] = field(default_factory=dict)
    _arrived: dict[Key, Any] = field(default_factory=dict)
    _awaited: set[Key] = field(default_factory=set)
    _slots: list[_Slot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._index = {key: i for i, key in enumerate(self.order)}

    def prepare(self, keys: Sequence[Key]) -> None:
        """Allocate for the first units of the order, and no others, and queue their copies: before the stage begins."""
        self._allocate(keys, min(self.buffers, len(self.streamed.intersection(keys))))
        self._send_until(len(keys))

    def begin(self, passes: int | None) -> None:
        """Allocate what is not there yet and queue copies as far as buffers allow.

        Args:
            passes: how often the order will be gone through; None for any number. A unit that is taken after the last
                pass begins another one.
        """
        self.passes = passes
        self._reach = max(self._current, 0)
        self._allocate(self.order, self.buffers if self.streamed else 0)
        self._issue()

    def expect(self, passes: int) -> None:
        """So many passes at least follow the present one."""
        if self.passes is not None:
            self._last(self._current // len(self.order) + 1 + passes)
            self._issue()

    def _last(self, passes: int) -> None:
        """The order is gone through so often at least."""
        assert self.passes is not None
        self.passes = max(self.passes, passes)
        self._drained = self._drained and self._issued >= self.passes * len(self.order)

    def acquire(self, key: Key) -> Tensor:
        """The buffer with a unit's weights; computation that is queued from now on finds them there."""
        count = len(self.order)
        position = max(self._current, 0) + (self._index[key] - max(self._current, 0)) % count
        if position != self._current:
            self._current = self._reach = position
            self._issued = max(self._issued, position)  # what was passed over is not copied any more
            if self.passes is not None:
                self._last(position // count + 1)
            self._issue()
        if key not in self.streamed:
            if key not in self._awaited:
                self.copy_stream.compute_waits(self._arrived.pop(key))
                self._awaited.add(key)
            return self._home[key]
        slot = next(slot for slot in self._slots if slot.position == position)
        if slot.ready is not _DONE:
            self.copy_stream.compute_waits(slot.ready)
            slot.ready = _DONE
        return slot.buffer

    def release(self, key: Key) -> None:
        """The computation that reads a unit's weights is queued."""
        for slot in self._slots:
            if slot.position == self._current:
                slot.used = self.copy_stream.used()
        self._reach = self._current + 1
        self._issue()

    def close(self) -> None:
        """Computation waits for the copies that nobody has waited for, so that the buffers can be given back."""
        under_way = [slot.ready for slot in self._slots if slot.position >= 0 and slot.ready is not _DONE]
        for event in [*self._arrived.values(), *under_way]:
            self.copy_stream.compute_waits(event)
        self._slots, self._home, self._arrived = [], {}, {}

    def _issue(self) -> None:
        """Queue copies until no buffer is free, at most one pass ahead and no more than the passes need."""
        end = max(self._current, 0) + len(self.order)
        if self.passes is None:
            self._send_until(end)
            return
        last = self.passes * len(self.order)
        self._send_until(min(end, last))
        if self._issued == last and not self._drained:
            self._drained = True
            self.drained()

    def _allocate(self, keys: Sequence[Key], buffers: int) -> None:
        """Memory for those of the units that are resident, and a ring of so many buffers; what is there stays."""
        homes = [key for key in keys if key not in self.streamed and key not in self._home]
        self._home |= {key: self.copy_stream.buffer(self.sizes[key]) for key in homes}
        slots = [_Slot(self.copy_stream.buffer(self.buffer_bytes)) for _ in range(buffers - len(self._slots))]
        self._slots += slots
        if homes or slots:
            # The allocator may hand out memory that computation still reads.
            self.copy_stream.copy_waits(self.copy_stream.used())

    def _send_until(self, end: int) -> None:
        """Queue copies up to a position, or until no buffer is free, or the host would wait too early."""
        while self._issued < end:
            key = self.order[self._issued % len(self.order)]
            there = key not in self.streamed and (key in self._arrived or key in self._awaited)
            if self._issued > self._reach and not there and self.blocks(key):
                break
            if not self._send(key):
                break
            self._issued += 1

    def _bring(self, key: Key, buffer: Tensor) -> None:
        """Queue what fills a buffer of the ring."""
        self.fill(key, buffer)

    def _send(self, key: Key) -> bool:
        """Queue the copy of the unit that is next, unless it is there; False where no buffer is free for it."""
        if key in self.streamed:
            slot = min(self._slots, key=lambda slot: slot.position)
            if slot.position >= max(self._current, 0):
                return False
            if slot.used is not None:
                self.copy_stream.copy_waits(slot.used)
            self._bring(key, slot.buffer)
            slot.position, slot.ready, slot.used = self._issued, self.copy_stream.copied(), None
        elif key not in self._arrived and key not in self._awaited:
            self.fill(key, self._home[key])
            self._arrived[key] = self.copy_stream.copied()
        return True


_DONE = object()
