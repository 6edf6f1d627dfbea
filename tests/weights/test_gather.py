"""Weights that several devices keep together: what each asks of the others, in which order, and what comes of it."""

from dataclasses import dataclass, field

import pytest
import torch
from support.residency import LateCopies

from consisid.engine.memory.allocator import part_bytes
from consisid.engine.weights.gather import Gatherer

KEYS = [("block", i) for i in range(6)]
SIZE = 4001  # bytes of a unit: no number of devices divides them
UNITS = {key: torch.randint(0, 250, (SIZE,), dtype=torch.uint8) for key in KEYS}


@dataclass
class Others:
    """Devices that have their parts, and say which units they were asked for, by the part that came with it."""

    rank: int
    holders: int
    asked: list = field(default_factory=list)

    def gather(self, part, buffer):
        size = part_bytes(SIZE, self.holders)
        start = self.rank * size
        (key,) = (key for key in KEYS if torch.equal(part[: SIZE - start], UNITS[key][start : start + size]))
        self.asked.append(key)
        assert buffer.numel() == size * self.holders
        buffer[:SIZE] = UNITS[key]


def gatherer(rank: int, holders: int, streamed: int = 6, buffers: int = 2) -> tuple[Gatherer, list]:
    """The units at one of the devices, in the middle of its stage, and what it has read from the host."""
    copies, host = LateCopies(), []

    def fill(key, buffer):
        host.append(key)
        copies.copy(buffer[:SIZE], UNITS[key])

    def fill_part(key, part, start):
        host.append(key)
        copies.copy(part[: SIZE - start], UNITS[key][start : start + len(part)])

    room = holders * part_bytes(SIZE, holders)
    sizes = dict.fromkeys(KEYS, SIZE)
    found = Gatherer(
        copies, KEYS, sizes, frozenset(KEYS[:streamed]), buffers, room, fill, others=Others(rank, holders),
        holders=holders, fill_part=fill_part,
    )  # fmt: skip
    found.begin(None)
    return found, host


def go_through(found: Gatherer, keys=KEYS) -> None:
    for key in keys:
        assert torch.equal(found.acquire(key)[:SIZE], UNITS[key])
        found.release(key)


@pytest.mark.parametrize("holders", [2, 3])
@pytest.mark.parametrize(("streamed", "buffers"), [(6, 2), (6, 4), (3, 3), (2, 2)])
def test_a_pass_gathers_each_unit_once(holders, streamed, buffers):
    """And the host is read once in all, by every device the same."""
    for rank in range(holders):
        found, host = gatherer(rank, holders, streamed, buffers)
        for _ in range(3):
            with found.together():
                go_through(found)
        assert host == KEYS
        assert found.others.asked == 3 * KEYS[:streamed]
        found.close()


def test_what_one_device_did_alone_the_others_do_not_see():
    """A pass that ended early, one from the host, and one that begins behind the first unit."""
    found, host = gatherer(0, 2)
    with pytest.raises(KeyError), found.together():
        go_through(found, [*KEYS[:2], ("block", 6)])
    go_through(found, [KEYS[0], KEYS[1], KEYS[2]])
    assert len(host) > len(KEYS)
    found.others.asked.clear()
    for keys in (KEYS, KEYS[:1], KEYS[1:], KEYS):
        with found.together():
            go_through(found, keys)
    found.close()
    fresh, _ = gatherer(0, 2)
    for keys in (KEYS, KEYS[:1], KEYS[1:], KEYS):
        with fresh.together():
            go_through(fresh, keys)
    fresh.close()
    assert found.others.asked == fresh.others.asked


def test_a_pass_may_be_of_the_first_unit_alone():
    """Whatever room the ring has, nothing else is gathered, and the rest of the pass comes after."""
    found, _ = gatherer(0, 2, buffers=4)
    with found.together(1):
        go_through(found, KEYS[:1])
    assert found.others.asked == KEYS[:1]
    with found.together():
        go_through(found, KEYS[1:])
    assert found.others.asked == KEYS


def test_closing_waits_for_the_parts():
    """Where a stage ends that has only begun."""
    found, _ = gatherer(1, 2)
    assert any(work is not None for work in found.copy_stream._queue)
    found.close()
    assert not any(work is not None for work in found.copy_stream._queue)


def test_nothing_is_asked_for_before_all_are_there():
    found, _ = gatherer(0, 2)
    assert found.others.asked == []
    found.expect(5)
    assert not any(slot.position >= 0 for slot in found._slots)


def test_the_ring_is_not_filled_while_a_call_reads_it():
    """Each gather into a buffer that was read waits for that call."""
    found, _ = gatherer(0, 2, buffers=2)
    copies, waits = found.copy_stream, []
    copies.log.clear()
    for _ in range(2):
        with found.together():
            go_through(found)
    waits = [number for kind, number in copies.log if kind == "copy waits"]
    used = [number for kind, number in copies.log if kind == "used"]
    assert waits == used[: len(waits)]
    assert len(waits) == 2 * len(KEYS) - 2  # all but the first two, which nobody had read
