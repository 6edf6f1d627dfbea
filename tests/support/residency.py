"""A device that copies as late as it may, and plans that force every residency onto a model as small as TINY."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from consisid.engine import ConsisID
from consisid.engine.memory.costs import video_costs
from consisid.engine.memory.planner import candidates, look_ahead
from consisid.engine.memory.plans import MemoryPlan
from consisid.engine.memory.simulate import UNKNOWN
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import TINY

from .engines import SHALLOW
from .people import random_identity

SHAPE = VideoShape.of(SHALLOW, 96, 144, 9)  # smaller than its own: many runs, and nothing here depends on it
SIZE = {"height": SHAPE.height, "width": SHAPE.width, "num_frames": SHAPE.num_frames}
OPTIONS = {"seed": 5, "num_inference_steps": 3, "output_type": "latent", **SIZE}
PROMPT = "A person walks."
PERSON = random_identity(TINY)  # what an engine finds out about a face it finds out once


class Killed(BaseException):
    """What a test ends a run with."""


@dataclass
class LateCopies:
    """A copy_stream whose copies happen only when computation waits for them, and whose buffers hold NaN until then.

    A buffer that is filled too early, while a call still needs it, or read before anybody waited, gives NaN.
    """

    log: list[Any] = field(default_factory=list)
    allocated: list[int] = field(default_factory=list)
    _queue: list[Any] = field(default_factory=list)
    _events: int = 0

    def buffer(self, size):
        self.allocated.append(size)
        return torch.full((size,), 255, dtype=torch.uint8)

    def host(self, size):
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, to, source):
        to.view(torch.uint8).fill_(255)
        self.queue(lambda: to.copy_(source))
        self.log.append(("copy", to.untyped_storage().data_ptr()))

    def queue(self, work):
        self._queue.append(work)

    def _event(self, kind):
        self._events += 1
        self.log.append((kind, self._events))
        return self._events, len(self._queue)

    def copied(self):
        return self._event("copied")

    def used(self):
        return self._event("used")

    def compute_waits(self, event):
        self.log.append(("compute waits", event[0]))
        for i, entry in enumerate(self._queue[: event[1]]):
            if entry is not None:
                entry()
                self._queue[i] = None

    def copy_waits(self, event):
        self.log.append(("copy waits", event[0]))

    def border(self):
        self.log.append(("step", 0))

    def stalls(self):
        return [0.0] * 10


def forced(engine: ConsisID, streamed: int, buffers: int, cfg: str = "batched", room: int = 0) -> MemoryPlan:
    """A plan in which, per stage, up to `streamed` units stream through up to `buffers` buffers, and what
    a budget of the largest peak and `room` bytes leaves of a stage is used ahead; room 0 stands for nothing ahead."""
    found = video_costs(SHALLOW, SHAPE, engine.dtype, steps=OPTIONS["num_inference_steps"])
    stages = []
    for stage in found.stages:
        ways = [
            way
            for way in candidates(stage, found.granule, UNKNOWN, cfg, False, False)
            if len(way.streamed) <= streamed and way.buffers <= buffers
        ]
        stages.append(max(ways, key=lambda way: (len(way.streamed), way.buffers)))
    if room:
        stages = look_ahead(stages, found, max(way.peak for way in stages) + room)
    return MemoryPlan(found.label, sum(way.peak for way in stages), UNKNOWN, tuple(stages), held=False)


def put(engine: ConsisID, plan: MemoryPlan, monkeypatch, copy_stream=None) -> None:
    """Make an engine follow a plan, on a copy_stream of the test's own."""
    monkeypatch.setattr(engine, "memory", plan.budget)
    monkeypatch.setattr("consisid.engine.run.run.plan_of", lambda *_, **__: replace(plan, label=plan.label + " "))
    engine.text_encoder._kept.clear()
    if copy_stream is not None:
        monkeypatch.setattr(engine.weights, "copy_stream", copy_stream)
        monkeypatch.setattr(engine.weights.host, "copy_stream", copy_stream)


def latents(engine: ConsisID, person=PERSON, **options):
    return engine.generate(person, PROMPT, **{**OPTIONS, **options}).latents


@pytest.fixture
def engine(shallow_folder) -> ConsisID:
    return ConsisID.open(shallow_folder)


@pytest.fixture(scope="session")
def expected(shallow) -> dict[str, torch.Tensor]:
    """The latents of a resident engine, by CFG mode."""
    return {cfg: latents(shallow, cfg=cfg) for cfg in ("batched", "sequential")}
