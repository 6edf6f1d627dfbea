"""Whoever has the device: its plan, its LoRAs, and what the device was used for in its time."""

from collections.abc import Mapping, Sequence

import torch

from ..engine import Engine
from ..lora.weights import Active
from ..memory.plans import MemoryPlan


class Holder:
    """A run by itself, or several together (engine/many), of which each then has that as its owner.

    Attributes:
        interrupt: the loop ends after the present step.
        plan: of the memory; None without a budget.
        loras: that are in the weights.
        stage_name: the present stage.
        copied: bytes of weights that were copied in its time.
        peaks: the most that was reserved of a GPU in each stage, bytes.
        stalls: seconds of each step in which it waited for weights, and since the last.
        mark: bytes of weights that the engine had copied when that was last noted.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._owner: Holder | None = None
        self.interrupt = False
        self.plan: MemoryPlan | None = None
        self.loras: Active = ()
        self.stage_name = "identify"
        self.copied, self.mark = 0, 0
        self.peaks: dict[str, int] = {}
        self.stalls = [0.0]

    @property
    def owner(self) -> "Holder":
        """Whose the device is while this computes."""
        return self._owner or self

    @owner.setter
    def owner(self, owner: "Holder") -> None:
        self._owner = owner if owner is not self else None

    @property
    def runs(self) -> "Sequence[Holder]":
        """What it consists of."""
        return [self]

    def stopping(self) -> bool:
        """Whether the loop ends after the present step."""
        return self.interrupt or self.owner.interrupt

    def enter(self) -> None:
        """The device is its owner's from now on, with its weights and as its plan says."""
        if self.owner is not self:
            self.owner.enter()
            return
        engine, plan, weights = self.engine, self.plan, self.engine.weights
        if engine.hand_over(self):
            # What the engine holds of another plan is its own, which only counts right while it is there.
            engine.share.begin(None if plan is None or plan.budget is None else plan.budget - plan.context)
            weights.use(plan)
            if self.stage_name != "decode":  # which has no LoRA, and of which others may have runs between two frames
                weights.set_loras(self.loras)
            for run in self.runs:
                run.mark = weights.copied
            weights.peaks.clear()
            weights.copy_stream.stalls()

    def suspend(self) -> None:
        """Another has the device from now on: note what it was used for."""
        weights = self.engine.weights
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize(self.engine.device)  # how long it waited is known afterwards
        weights.note_peak()
        for run in self.runs:
            run.note(weights.copied, weights.peaks)
        weights.peaks.clear()
        first, *rest = weights.copy_stream.stalls()
        self.stalls = [*self.stalls[:-1], self.stalls[-1] + first, *rest]

    def note(self, copied: int, peaks: Mapping[str, int]) -> None:
        """What the device was used for since that was noted last.

        Args:
            copied: bytes of weights, since the engine was opened.
            peaks: bytes that were reserved, by stage.
        """
        self.copied += copied - self.mark
        self.mark = copied
        for name, peak in peaks.items():
            self.peaks[name] = max(peak, self.peaks.get(name, 0))

    def leave(self, run: "Holder") -> bool:
        """One of its runs has ended; whether that was the last."""
        return True
