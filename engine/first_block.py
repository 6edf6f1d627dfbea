"""The first-block cache: what the first block changes of the video tokens tells whether the others have to run.

The method is ParaAttention's (github.com/chengzeyi/ParaAttention): blocks are left out while the residual of the first
one stays near that of the last step which ran them all. There the host waits for the first block of the very step; here
it reads what the step before has found, whose other calls the device still has before it, so that the device does not
run dry. The change that a step brings is taken to be that of the step before.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .shortcuts import Step

SURE = 2  # steps at the beginning that are computed: a change takes two


class FirstBlock:
    """Decides which steps of one loop run all blocks.

    Args:
        threshold: changes that add up to it make a step run.
        planned: what each step does of guidance.

    Attributes:
        steps: what those did that were decided.
    """

    def __init__(self, threshold: float, planned: Sequence[Step]):
        self.threshold, self.planned = threshold, planned
        self.steps: list[Step] = []
        self._before: list[Tensor | None] = []  # of each person, [b, V, C]: what the first block changed last
        self._found: list[Tensor] = []  # of this step, a change for each person
        self._told: Tensor | None = None  # on the host, once the device comes to it
        self._event: Any = None
        self._sum = 0.0
        self._have: set[int] = set()  # halves whose change of the last computed step is there

    def prepare(self, rooms: Sequence[Tensor]) -> None:
        """Memory for what is looked at, of each person [b, V, C]."""
        self._rooms = list(rooms)
        self._before = [None] * len(self._rooms)
        device = self._rooms[0].device
        self._told = torch.zeros(1, pin_memory=device.type == "cuda")
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def step(self, index: int) -> Step:
        """What a step does."""
        plan = self.planned[index]
        needed = set(range(2)[plan.halves])
        trunk = index < SURE or index == len(self.planned) - 1 or not needed <= self._have
        if index >= SURE:
            change = self._read()
            self._sum = 0.0 if self.steps[-1].trunk else self._sum + change
            trunk = trunk or not self._sum + change < self.threshold  # NaN computes
        self._have = needed if trunk else self._have
        self.steps.append(replace(plan, trunk=trunk))
        return self.steps[-1]

    def look(self, person: int, residual: Tensor) -> None:
        """What the first block changes of a person's video tokens, [b, V, C] of the prompt's half."""
        before, room = self._before[person], self._rooms[person]
        if before is not None:
            self._found.append(_mean(residual - before) / _mean(before))
        self._before[person] = room.copy_(residual)

    def tell(self) -> None:
        """The step's calls are queued: let the host know the largest change, when the device comes to it."""
        if self._found:
            assert self._told is not None
            self._told.copy_(torch.stack(self._found).amax().reshape(1), non_blocking=True)
            if self._event is not None:
                self._event.record()
        self._found = []

    def _read(self) -> float:
        assert self._told is not None
        if self._event is not None:
            self._event.synchronize()  # of a call of the step before, behind which the device has others
        return float(self._told.numpy()[0])


def _mean(x: Tensor) -> Tensor:
    return x.abs().mean(dtype=torch.float32)


def first_block_of(threshold: float | None, planned: Sequence[Step]) -> FirstBlock | None:
    """What decides, for a loop that was asked to have its steps decided."""
    return FirstBlock(threshold, planned) if threshold else None
