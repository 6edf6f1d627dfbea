"""How many copies a stage makes, and when: the conveyor against its plan and against the simulation."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from conftest import random_identity

from consisid.engine.memory.costs import Unit
from consisid.engine.memory.simulate import Machine, replay, spread
from consisid.engine.variants import TINY
from consisid.engine.weights.prefetch import Conveyor

from .conftest import OPTIONS, PROMPT, LateLane, forced, put

KEYS = [("block", i) for i in range(6)]


def conveyor(streamed: int, buffers: int, passes: int | None, lane=None) -> tuple[Conveyor, Counter]:
    """Six units of a byte, the first ones streamed, and a count of their copies."""
    lane, copies = lane or LateLane(), Counter()

    def fill(key, buffer):
        copies[key] += 1
        lane.copy(buffer, torch.full((1,), key[1], dtype=torch.uint8))

    sizes = dict.fromkeys(KEYS, 1)
    belt = Conveyor(lane, KEYS, sizes, frozenset(KEYS[:streamed]), buffers, 1, fill)
    belt.begin(passes)
    return belt, copies


def go_through(belt: Conveyor, keys=KEYS) -> None:
    for key in keys:
        assert belt.take(key).item() == key[1]
        belt.done(key)


@pytest.mark.parametrize("passes", [1, 2, 5])
@pytest.mark.parametrize(("streamed", "buffers"), [(0, 0), (2, 2), (6, 2), (6, 4)])
def test_no_copy_too_many(streamed, buffers, passes):
    """What streams is copied once per pass, what is resident once, and at the end no copy is under way."""
    belt, copies = conveyor(streamed, buffers, passes)
    for _ in range(passes):
        go_through(belt)
    before = len(belt.lane.log)
    belt.close()
    assert copies == {key: passes if key in KEYS[:streamed] else 1 for key in KEYS}
    assert belt.lane.log[before:] == []


def test_a_pass_that_nobody_expected():
    """It is made all the same, and closing in the middle of it waits for the copies that are under way."""
    belt, copies = conveyor(4, 2, 1)
    go_through(belt)
    go_through(belt, KEYS[:2])
    before = len(belt.lane.log)
    belt.close()
    assert copies == {key: 2 if key in KEYS[:4] else 1 for key in KEYS} | {KEYS[3]: 1}
    assert [kind for kind, _ in belt.lane.log[before:]] == ["compute waits"]


def test_without_an_end_copies_run_ahead():
    belt, copies = conveyor(6, 2, None)
    go_through(belt)
    assert copies.total() == 7


@pytest.mark.parametrize(("streamed", "buffers", "cfg"), [(0, 2, "batched"), (4, 2, "batched"), (3, 3, "sequential")])
def test_a_video_copies_what_its_plan_says(engine, monkeypatch, streamed, buffers, cfg):
    """Bytes and copies of every stage that is entered, and of no other."""
    plan, copies, entered = forced(engine, streamed, buffers, cfg), Counter(), []
    put(engine, plan, monkeypatch)
    fill, enter = engine.weights.host.fill, engine.weights._enter

    def filling(graph, names, layer, buffer):
        copies[graph.name, layer] += 1
        return fill(graph, names, layer, buffer)

    def entering(stage):
        entered.append(stage)
        enter(stage)

    monkeypatch.setattr(engine.weights.host, "fill", filling)
    monkeypatch.setattr(engine.weights, "_enter", entering)
    video = engine.generate(random_identity(TINY), PROMPT, **{**OPTIONS, "output_type": "uint8"})
    stages = [plan.stage(name) for name in entered]
    assert len(set(entered)) == len(entered) == 7
    passes = {"denoise": OPTIONS["num_inference_steps"] * (1 if cfg == "batched" else 2), "text": 2}
    expected = {key: 1 for stage in stages for key in stage.resident}
    expected |= {key: passes.get(stage.name, 1) for stage in stages for key in stage.streamed}
    assert copies == expected
    assert video.stats.streamed_bytes == sum(stage.copied for stage in stages)


@dataclass
class VirtualLane:
    """A lane on which bytes take `link` to be copied and calls as long as the test says; events are points in time."""

    link: float
    copies: float = 0.0  # when the copies that are queued so far end
    calls: float = 0.0  # when the calls that are queued so far end
    found: list[float] = field(default_factory=lambda: [0.0])

    def buffer(self, size):
        return torch.empty(size, dtype=torch.uint8)

    host = buffer

    def copy(self, to, source):
        self.copies += source.numel() / self.link

    def copied(self):
        return self.copies

    def used(self):
        return self.calls

    def compute_waits(self, event):
        self.found[-1] += max(0.0, event - self.calls)
        self.calls = max(self.calls, event)

    def copy_waits(self, event):
        self.copies = max(self.copies, event)

    def border(self):
        self.found.append(0.0)

    def stalls(self):
        found, self.found = self.found, [0.0]
        return found


@pytest.mark.parametrize("link", [5.0, 20.0, 100.0])  # copies hide not at all, in part, nearly altogether
@pytest.mark.parametrize("passes", [1, 2, 3, 7])
@pytest.mark.parametrize(("count", "streamed", "buffers"), [
    (4, 0, 2), (4, 2, 2), (4, 4, 2), (6, 4, 3), (7, 3, 2), (9, 9, 4), (9, 5, 4),
])  # fmt: skip
def test_the_simulation_is_the_schedule(count, streamed, buffers, passes, link):
    """The conveyor itself on a virtual clock: the stalls and the end are those of `replay`."""
    units = tuple(Unit(("block", i), 10 + i % 3, 100.0 * (1 + i % 4)) for i in range(count))
    moving, machine = spread(units, streamed), Machine("m", 100.0, link, "")
    expected = replay(units, moving, buffers, passes, machine)
    lane, sizes = VirtualLane(link), {unit.key: unit.bytes for unit in units}
    belt = Conveyor(
        lane, list(sizes), sizes, moving, buffers, max(sizes.values()),
        lambda key, buffer: lane.copy(buffer, buffer[: sizes[key]]),
    )  # fmt: skip
    belt.begin(passes)
    for _ in range(passes):
        for unit in units:
            belt.take(unit.key)
            lane.calls += unit.flops / machine.flops
            belt.done(unit.key)
        lane.border()
    belt.close()
    first, *later, after = lane.stalls()
    assert (first, after) == pytest.approx((expected.stall[0], 0.0))
    assert later[1:] == pytest.approx([expected.stall[1]] * (passes - 2) if passes > 2 else [])
    assert lane.calls == pytest.approx(expected.seconds)
