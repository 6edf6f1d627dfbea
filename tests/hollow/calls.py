"""What the hollow device was asked to do: counts and an ordered record, in the process that it is loaded in."""

import ctypes
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Flag, IntEnum, auto

import torch


class Kind(IntEnum):
    """The order is that of `enum kind` in device/hollow.h."""

    KERNEL = 0
    LIBRARY = auto()
    GRAPH = auto()
    TO_DEVICE = auto()
    TO_HOST = auto()
    ON_ONE = auto()
    ON_HOST = auto()
    SET = auto()
    EVENT_RECORD = auto()
    EVENT_WAIT = auto()
    EVENT_SYNC = auto()
    EVENT_QUERY = auto()
    STREAM_SYNC = auto()
    STREAM_QUERY = auto()
    DEVICE_SYNC = auto()
    MALLOC = auto()
    FREE = auto()
    HOST_REGISTER = auto()
    HOST_UNREGISTER = auto()
    HOST_ALLOC = auto()
    HOST_FREE = auto()
    FAULT = auto()


class Flags(Flag):
    BLOCKS = 1
    PAGEABLE = 2
    CAPTURED = 4


LAUNCHES = (Kind.KERNEL, Kind.LIBRARY, Kind.GRAPH)
COPIES = (Kind.TO_DEVICE, Kind.TO_HOST, Kind.ON_ONE, Kind.ON_HOST)
# What keeps the host waiting until the device has come so far; allocating and giving back does so too.
WAITS = frozenset(
    {
        Kind.EVENT_SYNC, Kind.STREAM_SYNC, Kind.DEVICE_SYNC, Kind.MALLOC, Kind.FREE, Kind.HOST_REGISTER, Kind.HOST_ALLOC
    }
)  # fmt: skip


class _Entry(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "device", "stream", "flags")),
        ("event", ctypes.c_int64), ("bytes", ctypes.c_uint64), ("address", ctypes.c_uint64), ("name", ctypes.c_char_p),
    )  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One call. stream: 0 is the default stream of its device; event: its number, 0 for none; address: where a copy
    writes; name: of a kernel, of a library's function, or what a fault is."""

    kind: Kind
    device: int
    stream: int
    flags: Flags
    event: int
    bytes: int
    address: int
    name: str

    @property
    def waits(self) -> bool:
        """Whether the host waits for the device in it: also in a copy to or from memory that is not pinned, and in one
        that was asked to block."""
        return self.kind in WAITS or (self.kind in COPIES and bool(self.flags & (Flags.BLOCKS | Flags.PAGEABLE)))


@dataclass
class Record:
    """The calls that were made inside a `recorded` block, there when it ends."""

    calls: Sequence[Call] = field(default_factory=list)

    def of(self, *kinds: Kind) -> list[Call]:
        return [call for call in self.calls if call.kind in kinds]

    @property
    def counts(self) -> Counter[Kind]:
        return Counter(call.kind for call in self.calls)

    @property
    def faults(self) -> list[str]:
        """What a GPU would have refused."""
        return [call.name for call in self.of(Kind.FAULT)]


class Device:
    """The hollow device of this process.

    Raises:
        RuntimeError: it is not loaded.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        if not present():
            raise RuntimeError("The hollow device is not preloaded; see tests/hollow/README.md.")
        self._library.hollow_entries.restype = ctypes.POINTER(_Entry)
        for name in ("count", "bytes", "used", "peak"):
            getattr(self._library, f"hollow_{name}").restype = ctypes.c_uint64

    def reset(self) -> None:
        """Forget all counts and recorded calls."""
        self._library.hollow_reset()

    def count(self, kind: Kind) -> int:
        return int(self._library.hollow_count(int(kind)))

    def bytes(self, kind: Kind) -> int:
        """What these calls moved, allocated or registered."""
        return int(self._library.hollow_bytes(int(kind)))

    def used(self, device: int = 0) -> int:
        """Bytes that are allocated on a device."""
        return int(self._library.hollow_used(device))

    def peak(self, device: int = 0) -> int:
        """The most bytes that were allocated on a device at once, since `reset_peaks`."""
        return int(self._library.hollow_peak(device))

    def reset_peaks(self) -> None:
        self._library.hollow_reset_peaks()

    def take(self, count: int) -> None:
        """So many bytes of each device are another process's from now on."""
        self._library.hollow_take(ctypes.c_size_t(count))

    def leave(self, room: int) -> None:
        """Another process takes all that is free of the current device but `room` bytes."""
        self.take(0)
        self.take(max(0, torch.cuda.mem_get_info()[0] - room))

    def refuse_allocations(self, after: int, count: int = 2) -> None:
        """So many allocations succeed, then `count` do not; -1 for none refused. PyTorch asks twice."""
        self._library.hollow_refuse_allocations(ctypes.c_long(after), ctypes.c_long(count))

    def set_fill(self, byte: int) -> None:
        """What reads back where no small copy has written."""
        self._library.hollow_set_fill(byte)

    def refuse_pinning(self, error: int) -> None:
        """cudaHostRegister returns this; 0 to succeed again."""
        self._library.hollow_refuse_pinning(error)

    @contextmanager
    def recorded(self) -> Iterator[Record]:
        """Record every call inside the block."""
        record = Record()
        self.reset()
        self._library.hollow_record(1)
        try:
            yield record
        finally:
            self._library.hollow_record(0)
            record.calls = self.entries()

    def forget_error(self) -> None:
        """An error that a call has left behind for this thread's next kernel."""
        self._library.cudaGetLastError()

    @property
    def position(self) -> int:
        """How many calls have been recorded so far."""
        count = ctypes.c_size_t()
        self._library.hollow_entries(ctypes.byref(count))
        return count.value

    def entries(self) -> list[Call]:
        """All that has been recorded so far."""
        count = ctypes.c_size_t()
        found = self._library.hollow_entries(ctypes.byref(count))
        return [
            Call(
                Kind(e.kind), e.device, e.stream, Flags(e.flags), e.event, e.bytes, e.address, (e.name or b"").decode()
            )
            for e in found[: count.value]
        ]


def present() -> bool:
    """Whether the hollow device is loaded into this process."""
    try:
        kinds = int(ctypes.CDLL(None).hollow_present())
    except AttributeError:
        return False
    if kinds != len(Kind):
        raise RuntimeError(f"The hollow device knows {kinds} kinds of calls, calls.py {len(Kind)}; build it again.")
    return True
