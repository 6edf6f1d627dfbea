"""How many copies a stage makes, and when: the conveyor against its plan and against the simulation."""

from collections import Counter

import pytest
import torch
from conftest import random_identity

from consisid.engine.stream import Conveyor
from consisid.engine.variants import TINY

from .conftest import OPTIONS, PROMPT, LateLane, forced, put

KEYS = [("block", i) for i in range(6)]


def conveyor(streamed: int, buffers: int, passes: int | None, lane=None) -> tuple[Conveyor, Counter]:
    """Six units of a byte, the first ones streamed, and a count of their copies."""
    lane, copies = lane or LateLane(), Counter()

    def fill(key, buffer):
        copies[key] += 1
        lane.copy(buffer, torch.full((1,), key[1], dtype=torch.uint8))

    sizes = dict.fromkeys(KEYS, 1)
    return Conveyor(lane, KEYS, sizes, frozenset(KEYS[:streamed]), buffers, 1, fill, passes), copies


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
