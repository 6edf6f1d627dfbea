"""Latency as a caller feels it: what lies outside the networks, and what a change of person or prompt costs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consisid.engine import ConsisID
from consisid.engine.checkpoint import FACE_FILES
from consisid.engine.runtime import Networks

from .inputs import identity
from .runs import Ours, Row, prompt_of
from .timing import seconds_of


@dataclass
class Call:
    """One call of a graph: marks at its start and end on the device's clock."""

    graph: str
    start: Any
    end: Any


@dataclass
class Probe:
    """Records when each graph starts and ends; the marks are read after the run, so nothing waits for the device."""

    device: torch.device
    calls: list[Call] = field(default_factory=list)

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000

    def watched(self, name: str, run: Callable[..., Any]) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Any]:
        def call(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
            start = self.mark()
            outputs = run(inputs, weights)
            self.calls.append(Call(name, start, self.mark()))
            return outputs

        return call

    def inside(self) -> float:
        """Seconds in all graphs."""
        return sum(self.between(call.start, call.end) for call in self.calls)

    def idle(self) -> list[float]:
        """Per pair of steps, seconds from the end of one's last graph to the start of the next one's first."""
        heads = [i for i, call in enumerate(self.calls[:-1]) if call.graph == "head"]
        following = [(self.calls[i], self.calls[i + 1]) for i in heads if self.calls[i + 1].graph == "embed"]
        return [self.between(before.end, after.start) for before, after in following]


@contextmanager
def probing(networks: Networks) -> Iterator[Probe]:
    """Every graph of some networks reports its calls, inside the block."""
    probe, runners = Probe(networks.device), networks.runners
    networks.runners = {name: probe.watched(name, run) for name, run in runners.items()}
    try:
        yield probe
    finally:
        networks.runners = runners


def engine_has_faces(engine: ConsisID) -> bool:
    """Whether there are face models: random weights at full size have none."""
    return (engine.folder / engine.manifest.checkpoint / "face_encoder" / FACE_FILES["arcface"]).is_file()


def again(engine: ConsisID) -> Callable[[], object]:
    """identify() of a picture that the engine has identified once; what it shows does not matter to the second call."""
    photo = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    engine.identify(photo, aligned=True)
    return lambda: engine.identify(photo, aligned=True)


def measure(engine: ConsisID, maker: Ours, runs: int, opening: float, first: float) -> list[Row]:
    """The rows of the section.

    Args:
        opening: seconds of ConsisID.open.
        first: seconds of the first generate() after it.
    """
    section, networks, device = "latency", engine.networks(), engine.device
    warm, outside, idle, person_switch, prompt_switch = [], [], [], [], []
    for index in range(runs):
        with probing(networks) as probe:
            total = maker(1000 + index).total
        warm.append(total)
        outside.append(max(0.0, total - probe.inside()))
        idle += probe.idle()
        stranger = identity(engine.variant, seed=1000 + index)

        def meet(person: Any = stranger) -> None:
            person.features(networks)
            person.moments(networks, engine.shape.height, engine.shape.width)

        def read(prompt: str = prompt_of(2000 + index)) -> None:
            engine.text_encoder(networks, [prompt])

        with torch.no_grad():
            person_switch.append(seconds_of(meet, device))
            prompt_switch.append(seconds_of(read, device))
    seen: list[float] = []
    if engine_has_faces(engine):
        meet_again = again(engine)
        seen = [seconds_of(meet_again, device) for _ in range(runs)]
    rows = [
        Row.of(section, "open", "s", [opening], "files hashed, weights read"),
        Row.of(section, "first generate() after open", "s", [first]),
        Row.of(section, "warm generate()", "s", warm),
        Row.of(section, "of which outside the networks", "s", outside, "what is not between start and end of a graph"),
        Row.of(section, "another person", "s", person_switch, "embeddings given; extractor, folding, image encoder"),
        Row.of(section, "another prompt", "s", prompt_switch, "one prompt through the text encoder"),
    ]
    if seen:
        note = "identify() of a 1 MP array, which is hashed; no network runs"
        rows.append(Row.of(section, "a photo seen before", "s", seen, note))
    if idle:
        note = "scheduler and guidance; on a GPU the device's clock, small kernels of its own included"
        rows.insert(4, Row.of(section, "between two steps", "s", idle, note))
    return rows
