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
from consisid.engine.checkpoint.reading import FACE_FILES
from consisid.engine.runtime.executor import GraphExecutor

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
def probing(networks: GraphExecutor) -> Iterator[Probe]:
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


SECTION = "latency"


class Latency:
    """The rows of the section: one value of each with every call, so that these can lie far from each other, in a run
    that is long, and their spread is the machine's."""

    def __init__(self, engine: ConsisID, maker: Ours):
        self.engine, self.maker, self.count = engine, maker, 0
        self.warm, self.outside, self.idle = list[float](), list[float](), list[float]()
        self.person, self.prompt, self.seen = list[float](), list[float](), list[float]()
        self.meet_again = again(engine) if engine_has_faces(engine) else None

    def __call__(self) -> None:
        engine, networks, index = self.engine, self.engine.networks(), self.count
        with probing(networks) as probe:
            total = self.maker(1000 + index).total
        self.warm.append(total)
        self.outside.append(max(0.0, total - probe.inside()))
        self.idle += probe.idle()
        stranger = identity(engine.variant, seed=1000 + index)

        def meet() -> None:
            engine.conditioner.images(networks, stranger, engine.shape.height, engine.shape.width)

        with torch.no_grad():
            self.person.append(seconds_of(meet, engine.device))
            self.prompt.append(
                seconds_of(lambda: engine.text_encoder(networks, [prompt_of(2000 + index)]), engine.device)
            )
        if self.meet_again:
            self.seen.append(seconds_of(self.meet_again, engine.device))
        self.count += 1

    def rows(self, opening: float, first: float) -> list[Row]:
        """What was measured.

        Args:
            opening: seconds of ConsisID.open.
            first: seconds of the first generate() after it.
        """
        found = (
            ("open", [opening], "files hashed, weights read"),
            ("first generate() after open", [first], ""),
            ("warm generate()", self.warm, ""),
            ("of which outside the networks", self.outside, "what is not between start and end of a graph"),
            ("between two steps", self.idle,
             "scheduler and guidance; on a GPU the device's clock, small kernels of its own included"),
            ("another person", self.person, "embeddings given; extractor, folding, image encoder"),
            ("another prompt", self.prompt, "one prompt through the text encoder"),
            ("a photo seen before", self.seen, "identify() of a 1 MP array, which is hashed; no network runs"),
        )  # fmt: skip
        return [Row.of(SECTION, name, "s", values, note) for name, values, note in found if values]
