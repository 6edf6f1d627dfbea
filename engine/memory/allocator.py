"""How PyTorch's CUDA allocator places tensors, as far as a plan of the memory depends on it.

The rules are those of c10/cuda/CUDACachingAllocator.cpp: memory comes from the driver in segments; what is freed stays
reserved, and serves the smallest request that fits first; a block that is larger than a request is split, and free
neighbours grow together again. So what is reserved is more than what tensors take at once, and how much more depends on
the order of requests. A plan therefore places them itself: weights in segments of their own, everything that comes and
goes in one segment, the arena, whose size is found by replaying the requests of a call.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

BLOCK = 512  # bytes; every request is rounded up to a multiple
SMALL = 2**20  # up to here requests share small segments
SMALL_SEGMENT = 2 * 2**20
GRANULE = 2 * 2**20  # to a multiple of this a segment of one's own is rounded up
FIRST_OWN = 10 * 2**20  # from here a request gets a segment of its own where no free block fits
SHARED_SEGMENT = 20 * 2**20  # between the two
SPARE = 32  # a part of that many of an arena is for what is not replayed: workspaces of convolutions, for one

Event = tuple[int, int]
"""A request: its number and its bytes; or its number and 0 when it is given back."""


def aligned(count: int, to: int = BLOCK) -> int:
    """Bytes rounded up to a multiple."""
    return -(-count // to) * to


def part_bytes(size: int, holders: int) -> int:
    """Of the weights of a call, what each of several devices keeps."""
    return aligned(ceil(size / holders))


@dataclass
class Arena:
    """One segment and its blocks. Free ones are kept by size, then by address: the order in which they are tried."""

    size: int
    _free: list[Event] = field(default_factory=list)  # (bytes, address)
    _used: dict[int, Event] = field(default_factory=dict)  # by request: (address, bytes)

    def __post_init__(self) -> None:
        self._free.append((self.size, 0))

    def take(self, request: int, count: int) -> bool:
        """Place a request; False where no free block is large enough."""
        wanted = aligned(count)
        found = next((block for block in self._free if block[0] >= wanted), None)
        if found is None:
            return False
        self._free.remove(found)
        size, address = found
        if size - wanted > SMALL:  # a smaller rest stays with the block
            insort(self._free, (size - wanted, address + wanted))
            size = wanted
        self._used[request] = address, size
        return True

    def give(self, request: int) -> None:
        """Give a request's block back; it grows together with free neighbours."""
        address, size = self._used.pop(request)
        for block in [b for b in self._free if b[1] + b[0] == address or b[1] == address + size]:
            self._free.remove(block)
            address, size = min(address, block[1]), size + block[0]
        insort(self._free, (size, address))


def arena_bytes(events: Sequence[Event]) -> int:
    """A segment, within 1/64 of the smallest, in which all of these requests find a place in their order, and SPARE
    more; small requests, which do not go there, are added as the shared segments that they fill.

    The requests fit with SPARE and without: in a larger segment they are placed elsewhere, and may fit no more.
    """
    large = [(request, count) for request, count in events if count == 0 or count > SMALL]
    small = aligned(peak_bytes([e for e in events if e[1] <= SMALL]), SMALL_SEGMENT)
    size = aligned(peak_bytes(large), GRANULE)
    while True:
        whole = size + aligned(size // SPARE, GRANULE) + small
        if _fits(large, size) and _fits(large, whole):
            return whole
        size = aligned(size + max(GRANULE, size // 64), GRANULE)


def peak_bytes(events: Sequence[Event]) -> int:
    """The most bytes that the requests take at once, with no loss between them."""
    sizes: dict[int, int] = {}
    now = peak = 0
    for request, count in events:
        if count:
            sizes[request] = aligned(count)
            now += sizes[request]
            peak = max(peak, now)
        else:
            now -= sizes.pop(request, 0)
    return peak


def _fits(events: Sequence[Event], size: int) -> bool:
    arena, placed = Arena(size), set[int]()
    for request, count in events:
        if count:
            if not arena.take(request, count):
                return False
            placed.add(request)
        elif request in placed:
            arena.give(request)
            placed.remove(request)
    return True


def reserved_bytes(tensors: Sequence[int], fused: bool) -> int:
    """Bytes that tensors of these sizes take of a device, each on its own."""
    if not fused:
        return sum(tensors)
    own = sum(aligned(size, GRANULE) for size in tensors if size >= FIRST_OWN)
    small = aligned(sum(aligned(size) for size in tensors if size <= SMALL), SMALL_SEGMENT)
    shared: list[int] = []  # what is free in segments of those between
    for size in sorted((aligned(size) for size in tensors if SMALL < size < FIRST_OWN), reverse=True):
        place = next((i for i, free in enumerate(shared) if free >= size), len(shared))
        shared[place:] = shared[place:] or [SHARED_SEGMENT]
        shared[place] -= size
    return own + small + len(shared) * SHARED_SEGMENT
