"""How many copies a stage makes, and when: the prefetcher against its plan and against the simulation."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from support.people import random_identity
from support.residency import OPTIONS, PERSON, PROMPT, LateCopies, forced, put

from consisid.engine.memory.costs import Unit
from consisid.engine.memory.device import control_group_free
from consisid.engine.memory.simulate import Machine, replay, spread
from consisid.engine.variants import TINY
from consisid.engine.weights.prefetch import Prefetcher

KEYS = [("block", i) for i in range(6)]


def prefetcher(streamed: int, buffers: int, passes: int | None, copy_stream=None) -> tuple[Prefetcher, Counter]:
    """Six units of a byte, the first ones streamed, and a count of their copies."""
    copy_stream, copies = copy_stream or LateCopies(), Counter()

    def fill(key, buffer):
        copies[key] += 1
        copy_stream.copy(buffer, torch.full((1,), key[1], dtype=torch.uint8))

    sizes = dict.fromkeys(KEYS, 1)
    belt = Prefetcher(copy_stream, KEYS, sizes, frozenset(KEYS[:streamed]), buffers, 1, fill)
    belt.begin(passes)
    return belt, copies


def go_through(belt: Prefetcher, keys=KEYS) -> None:
    for key in keys:
        assert belt.acquire(key).item() == key[1]
        belt.release(key)


@pytest.mark.parametrize("passes", [1, 2, 5])
@pytest.mark.parametrize(("streamed", "buffers"), [(0, 0), (2, 2), (6, 2), (6, 4)])
def test_no_copy_too_many(streamed, buffers, passes):
    """What streams is copied once per pass, what is resident once, and at the end no copy is under way."""
    belt, copies = prefetcher(streamed, buffers, passes)
    for _ in range(passes):
        go_through(belt)
    before = len(belt.copy_stream.log)
    belt.close()
    assert copies == {key: passes if key in KEYS[:streamed] else 1 for key in KEYS}
    assert belt.copy_stream.log[before:] == []


def test_a_pass_that_nobody_expected():
    """It is made all the same, and closing in the middle of it waits for the copies that are under way."""
    belt, copies = prefetcher(4, 2, 1)
    go_through(belt)
    go_through(belt, KEYS[:2])
    before = len(belt.copy_stream.log)
    belt.close()
    assert copies == {key: 2 if key in KEYS[:4] else 1 for key in KEYS} | {KEYS[3]: 1}
    assert [kind for kind, _ in belt.copy_stream.log[before:]] == ["compute waits"]


def test_without_an_end_copies_run_ahead():
    belt, copies = prefetcher(6, 2, None)
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


def test_what_a_video_has_copied_is_its_own(engine, monkeypatch):
    """Not that of the videos before it: each of another person, the text known after the first."""
    put(engine, forced(engine, 4, 2), monkeypatch)
    videos = [engine.generate(random_identity(TINY, seed), PROMPT, **OPTIONS) for seed in (1, 2, 3)]
    first, second, third = (video.stats.streamed_bytes for video in videos)
    assert 0 < third == second < first


def test_memory_that_the_allocator_hands_out_again_is_written_after_all_that_reads_it():
    """Copies into new buffers wait for the computation that is queued when they are allocated, for homes and ring."""
    for streamed in (0, 4):
        belt, _ = prefetcher(streamed, 2, 1)
        kinds = [kind for kind, _ in belt.copy_stream.log]
        assert kinds.index("copy waits") < kinds.index("copy")
        waited = next(event for kind, event in belt.copy_stream.log if kind == "copy waits")
        assert ("used", waited) in belt.copy_stream.log


@dataclass
class VirtualCopies:
    """Copies that take `link` seconds a byte beside calls as long as the test says; events are points in time."""

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
    """The prefetcher itself on a virtual clock: the stalls and the end are those of `replay`."""
    units = tuple(Unit(("block", i), 10 + i % 3, 100.0 * (1 + i % 4)) for i in range(count))
    moving, machine = spread(units, streamed), Machine("m", 100.0, link, "")
    expected = replay(units, moving, buffers, passes, machine)
    copy_stream, sizes = VirtualCopies(link), {unit.key: unit.bytes for unit in units}
    belt = Prefetcher(
        copy_stream, list(sizes), sizes, moving, buffers, max(sizes.values()),
        lambda key, buffer: copy_stream.copy(buffer, buffer[: sizes[key]]),
    )  # fmt: skip
    belt.begin(passes)
    for _ in range(passes):
        for unit in units:
            belt.acquire(unit.key)
            copy_stream.calls += unit.flops / machine.flops
            belt.release(unit.key)
        copy_stream.border()
    belt.close()
    first, *later, after = copy_stream.stalls()
    assert (first, after) == pytest.approx((expected.stall[0], 0.0))
    assert later[1:] == pytest.approx([expected.stall[1]] * (passes - 2) if passes > 2 else [])
    assert copy_stream.calls == pytest.approx(expected.seconds)


@pytest.mark.parametrize(("streamed", "buffers"), [(6, 2), (6, 3), (3, 2), (0, 2)])
def test_a_copy_that_blocks_the_host_is_made_while_the_call_before_runs(streamed, buffers):
    """From the page cache: one copy after each call that has been launched, never before one that could be."""
    log = []

    def fill(key, buffer):
        log.append(("copy", key))
        buffer.fill_(key[1])

    belt = Prefetcher(
        LateCopies(),
        KEYS,
        dict.fromkeys(KEYS, 1),
        frozenset(KEYS[:streamed]),
        buffers,
        1,
        fill,
        blocks=lambda key: True,
    )
    belt.begin(2)
    for key in KEYS * 2:
        assert belt.acquire(key).item() == key[1]
        log.append(("call", key))
        belt.release(key)
    belt.close()
    first = [step for key, after in pairwise(KEYS) for step in (("call", key), ("copy", after))]
    again = ("copy", KEYS[0]) if streamed else None
    assert log[: len(first) + 3] == [
        ("copy", KEYS[0]), *first, ("call", KEYS[-1]), *([again] if again else [("call", KEYS[0])])
    ]  # fmt: skip
    assert Counter(log) == {("call", key): 2 for key in KEYS} | {
        ("copy", key): 2 if key in KEYS[:streamed] else 1 for key in KEYS
    }


def test_pinning_that_is_refused_is_said_and_survived(engine, monkeypatch, expected):
    """Weights come from the page cache then."""
    plan = forced(engine, 4, 2)
    put(engine, plan, monkeypatch)
    engine.weights.host.keep = True
    monkeypatch.setattr(engine.weights.copy_stream, "host", lambda size: None)
    with pytest.warns(UserWarning, match=r"refused to pin .* weights come from the page cache.*ulimit -l"):
        video = engine.generate(PERSON, PROMPT, **OPTIONS)
    assert torch.equal(video.latents, expected["batched"])
    assert video.stats.modes["weights from"] == "page cache"


STAT = "anon 100\nactive_file 700\ninactive_file 30\nshmem 5\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"memory.max": "2000\n", "memory.current": "1200\n", "memory.stat": STAT}, 1530),
        ({"memory.max": "max\n", "memory.current": "1200\n", "memory.stat": STAT}, 77),
        (
            {"memory/memory.limit_in_bytes": "900", "memory/memory.usage_in_bytes": "840", "memory/memory.stat": STAT},
            790,
        ),
    ],
)
def test_the_page_cache_of_a_container_is_free(tmp_path, files, free):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert control_group_free(tmp_path, 77) == free
