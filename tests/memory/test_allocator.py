"""The rules of PyTorch's allocator that plans replay, by hand and for any order of requests."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from consisid.engine.memory.allocator import (
    BLOCK,
    GRANULE,
    SMALL,
    SMALL_SEGMENT,
    SPARE,
    Arena,
    aligned,
    arena_bytes,
    peak_bytes,
)

MIB = 2**20


def test_the_smallest_free_block_that_fits_is_split():
    arena = Arena(40 * MIB)
    for request, size in enumerate((12, 2, 6, 2, 18)):
        assert arena.take(request, size * MIB)
    arena.give(0)
    arena.give(2)
    assert arena.take(5, 5 * MIB)  # into the 6 MiB: the rest, 1 MiB, is too small to be a block
    assert not arena.take(6, 13 * MIB)
    assert arena.take(7, 4 * MIB)
    assert arena.take(8, 8 * MIB)  # what is left of the 12 MiB
    assert not arena.take(9, BLOCK)


def test_a_rest_above_a_mebibyte_is_a_block():
    arena = Arena(8 * MIB)
    assert arena.take(0, 8 * MIB - SMALL - BLOCK)
    assert arena.take(1, SMALL + BLOCK)
    whole = Arena(8 * MIB)
    assert whole.take(0, 8 * MIB - SMALL)
    assert not whole.take(1, BLOCK)


def test_free_neighbours_grow_together():
    arena = Arena(30 * MIB)
    for request in range(3):
        assert arena.take(request, 10 * MIB)
    arena.give(0)
    arena.give(2)
    assert not arena.take(3, 20 * MIB)
    arena.give(1)
    assert arena.take(3, 30 * MIB)


def test_pieces_cost_more_than_their_bytes():
    """Ten tensors of 4 MiB, every other given back, then one of 20 MiB: its bytes are free, its place is not."""
    events = [(i, 4 * MIB) for i in range(10)] + [(i, 0) for i in range(0, 10, 2)] + [(10, 20 * MIB)]
    assert peak_bytes(events) == 40 * MIB
    assert arena_bytes(events) >= 60 * MIB


def test_small_requests_are_counted_in_segments_of_their_own():
    large = [(0, 64 * MIB)]
    assert arena_bytes(large) == 64 * MIB + aligned(64 * MIB // SPARE, GRANULE)
    assert arena_bytes([*large, (1, 100)]) == arena_bytes(large) + SMALL_SEGMENT


def fits(events, size):
    arena = Arena(size)
    return all(arena.take(request, count) if count else arena.give(request) is None for request, count in events)


def test_a_larger_segment_may_hold_less_and_is_not_taken():
    """With 4 MiB more the third request goes elsewhere, and the last one finds its room in two pieces."""
    events = [(r, size * MIB) for r, size in ((0, 2), (1, 39), (2, 26), (1, 0), (3, 35), (0, 0), (4, 41))]
    assert fits(events, 102 * MIB)
    assert not fits(events, 106 * MIB)  # with SPARE
    assert fits(events, arena_bytes(events))


@st.composite
def requests(draw):
    events, alive = [], []
    for number in range(draw(st.integers(1, 40))):
        if alive and draw(st.booleans()):
            events.append((alive.pop(draw(st.integers(0, len(alive) - 1))), 0))
        events.append((number, draw(st.integers(SMALL + 1, 64 * MIB))))
        alive.append(number)
    return events


@given(requests())
def test_any_requests_fit_with_what_is_spare(events):
    assert fits(events, arena_bytes(events))


@given(requests())
def test_any_requests_fit_into_what_is_found(events):
    """Without what is spare, and no two at the same place at the same time."""
    found = arena_bytes(events)
    sizes = range(GRANULE, found + 1, GRANULE)
    arena = Arena(next(size for size in sizes if size + aligned(size // SPARE, GRANULE) == found))
    assert peak_bytes(events) <= found
    for request, count in events:
        if count:
            assert arena.take(request, count)
        else:
            arena.give(request)
        used = sorted([*arena._used.values(), *((address, size) for size, address in arena._free)])
        assert all(address + size == following for (address, size), (following, _) in pairwise(used))
        assert sum(size for _, size in used) == arena.size
