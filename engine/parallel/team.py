"""The first device and the others: it gives orders, and all carry them out together.

Everything that is not the blocks or the decoder runs on the first device alone, in the process of the caller: prompts,
photos, schedulers, callbacks, checkpoints. What the others need for a call comes with the order.
"""

import os
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from ..backends import Outputs
from ..lora.weights import Active
from ..memory.plans import MemoryPlan
from ..runtime.executor import GraphExecutor
from ..shapes import VideoShape
from .crew import Crew, processors
from .exchange import Exchange
from .mesh import Mesh
from .trunk import SpreadTrunk, take


class Team:
    """The first device's side.

    Attributes:
        crew: the processes of the others.
        lost: why they no longer answer, None while they do.
    """

    def __init__(self, exchange: Exchange, mesh: Mesh, crew: Crew):
        self.exchange, self.mesh, self.crew = exchange, mesh, crew
        self._known: dict[int, tuple[ref[Any], ...]] = {}
        self._next = 0
        self._said: tuple[Any, ...] | None = None
        self._loras: Active = ()  # that the others have
        self._ended, self._process = False, os.getpid()

    def order(self, what: str, **values: Any) -> None:
        """Tell all others to do something: a method of follower.Follower, with these arguments."""
        self.crew.say(pickle.dumps((what, values)))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done with the others.

        Raises:
            RankError: one of them failed, or does not answer.
        """
        with self.crew.watching(self.exchange), processors(0, self.mesh.size, self.exchange.device):
            yield
            self.exchange.settle()

    def begin(self, shape: VideoShape, plan: MemoryPlan | None, loras: Active, stage: str) -> None:
        """A run, or another plan of it; nothing where the others know. `stage` is what they bring weights for first."""
        if (shape, plan, loras) != self._said:
            packed = b"" if loras == self._loras else pickle.dumps(loras)
            self._loras = loras
            with self.together():
                self.order("begin", shape=shape.pixels, plan=plan, loras=len(packed), stage=stage)
                if packed:
                    data = torch.frombuffer(bytearray(packed), dtype=torch.uint8).to(self.exchange.device)
                    self.exchange.share("loras", [data])
            self._said = shape, plan, loras

    def rest(self) -> None:
        """Nobody computes now."""
        if self._said is not None and self.crew.lost is None:
            self._sweep()
            self.order("rest")
        self._said = None

    def end(self) -> None:
        """End the processes; what is done with them afterwards raises RankError."""
        if self._ended or os.getpid() != self._process:  # a fork has no part in them
            return
        self._ended = True
        if self.crew.lost is None:
            self.crew.lost = "The engine on several devices was closed."
            self.order("end")
        self.crew.end()
        self.crew.leave()

    def known(self, cos: Tensor, sin: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> int:
        """The number under which the others have these; they are sent where they have not."""
        before, number = self._next, self.number(cos, *keys[:1])
        if number > before:
            given = [x.contiguous() for x in (cos, sin, *keys, *values)]
            self.order("learn", number=number, shapes=[(tuple(x.shape), x.dtype) for x in given])
            self.exchange.share("known", given)
        return number

    def _sweep(self) -> None:
        """What no longer lives here the others need no more."""
        for number in [number for number, places in self._known.items() if any(place() is None for place in places)]:
            del self._known[number]
            self.order("forget", number=number)

    def number(self, *things: Any) -> int:
        """By which orders name what the others have too, for as long as all of it lives here; rising."""
        self._sweep()
        for number, places in self._known.items():
            if len(places) == len(things) and all(place() is x for place, x in zip(places, things, strict=True)):
                return number
        self._next += 1
        self._known[self._next] = tuple(map(ref, things))
        return self._next

    def trunk(
        self, trunk: SpreadTrunk, tokens: list[Tensor], modulation: Tensor, cos: Tensor, sin: Tensor,
        keys: Sequence[Tensor], values: Sequence[Tensor], begun: bool, passes: int,
    ) -> Tensor:  # fmt: skip
        """Video tokens [B, V, C] after all blocks; see GraphExecutor.trunk."""
        with self.together():
            hidden = tokens.pop()
            number, size, count = self.known(cos, sin, keys, values), self._samples(hidden), len(hidden)
            self.order("trunk", size=size, count=count, number=number, begun=begun, passes=passes, dtype=hidden.dtype)
            own = self._give(trunk, hidden, size, modulation)
            found = hidden[:, trunk.share.length :].clone(memory_format=torch.contiguous_format)
            del hidden
            own = trunk.run(own, modulation, *trunk.positions(cos, sin), keys, values, begun)
            self._collect(trunk, found, own, size, video=True)
        return found

    def block(self, trunk: SpreadTrunk, hidden: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The hidden state [B, T + V, C] after the first block."""
        with self.together():
            number, size = self.known(cos, sin, [], []), self._samples(hidden)
            self.order("block", size=size, count=len(hidden), number=number, dtype=hidden.dtype)
            own = self._give(trunk, hidden, size, modulation)
            found = torch.empty_like(hidden)
            own = trunk.block(own, modulation, *trunk.positions(cos, sin))
            self._collect(trunk, found, own, size, video=False)
        return found

    def _samples(self, hidden: Tensor) -> int:
        """Of a device: half of them where that can be."""
        return len(hidden) // 2 if self.mesh.cfg == 2 and len(hidden) % 2 == 0 else len(hidden)

    def _busy(self, count: int, size: int) -> list[tuple[int, int]]:
        """The ranks that have some of `count` samples to compute, each with the first of them."""
        ranks = ((rank, self.mesh.coordinates(rank)[0] * size) for rank in range(self.mesh.size))
        return [(rank, begin) for rank, begin in ranks if begin < count]

    def _give(self, trunk: SpreadTrunk, hidden: Tensor, size: int, modulation: Tensor) -> Tensor:
        """To each device its part of the hidden state, and the modulation; the first device's part."""
        gives, modulation = [], modulation.contiguous()
        for rank, begin in self._busy(len(hidden), size)[1:]:
            share = trunk.shares[rank % self.mesh.sequence]
            gives += [(take(hidden[begin : begin + size], share), rank), (modulation, rank)]
        self.exchange.swap("scatter", gives)
        return take(hidden[:size], trunk.share)

    def _collect(self, trunk: SpreadTrunk, found: Tensor, own: Tensor, size: int, video: bool) -> None:
        """Every device's rows into their places in `found`: video tokens [B, V, C], or all of them."""
        takes, offset = [], trunk.share.length if video else 0
        for rank, begin in self._busy(len(found), size):
            for start, end in trunk.shares[rank % self.mesh.sequence].spans[video:]:
                target = found[begin : begin + size, start - offset : end - offset]
                takes.append((target, torch.empty_like(target, memory_format=torch.contiguous_format), rank))
        parts = trunk.real(own, video)
        for (target, _, _), part in zip(takes, parts, strict=False):
            target.copy_(part)
        takes = takes[len(parts) :]
        self.exchange.swap("gather", takes=[(place, rank) for _, place, rank in takes])
        for target, place, _ in takes:
            target.copy_(place)


class TeamExecutor(GraphExecutor):
    """The graphs of the first device, whose blocks run on all devices.

    Args:
        networks: of the first device.
        begin: tells the others whose run it is.
    """

    def __init__(self, networks: GraphExecutor, team: Team, trunk: SpreadTrunk, begin: Callable[[], None]):
        super().__init__(networks.variant, networks.runners, networks.weights, networks.device, networks.dtype)
        self._networks, self._team, self._trunk, self._begin = networks, team, trunk, begin

    def __call__(self, name: str, *inputs: Tensor, layer: int = 0) -> Outputs:
        if name == "block":
            self._begin()
            return self._team.block(self._trunk, *inputs)
        return self._networks(name, *inputs, layer=layer)

    def text_layers(self, states: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        return self._networks.text_layers(states)

    def modulation(self, temb: Tensor) -> Tensor:
        return self._networks.modulation(temb)

    def face_keys_values(self, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self._networks.face_keys_values(tokens)

    def trunk(
        self, tokens: list[Tensor], modulation: Tensor, cos: Tensor, sin: Tensor, keys: Sequence[Tensor],
        values: Sequence[Tensor], put: Callable[[Tensor], Tensor] = lambda hidden: hidden, begun: bool = False,
    ) -> Generator[None, None, Tensor]:  # fmt: skip
        """All at once: devices that stopped after every call would wait for each other."""
        yield
        self._begin()  # another run may have come in between
        passes = self.weights.expected("denoise")
        return put(self._team.trunk(self._trunk, tokens, modulation, cos, sin, keys, values, begun, passes))
