"""The weights of engines that hold them: which are on the device, and how much of each streams, as a plan has it.

A plan is made for weights that come one layer at a time; TensorRT streams within an engine. What it takes from a plan
is the share of a stage's weights that stay on the device.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from ..backends.tensorrt.run import shares
from ..checkpoint.reading import Checkpoint
from ..graphs.graph import Graph
from ..lora.weights import PART, reads
from ..memory.plans import MemoryPlan
from .copy_stream import CopyStream
from .device import DeviceWeights
from .manager import WeightManager


class Holder(Protocol):
    """An engine as far as its weights matter: backends/tensorrt/run.py."""

    @property
    def streamable(self) -> int:
        """Bytes of weights that may stay in host memory."""

    def refit(self, weights: Mapping[str, Tensor]) -> None:
        """Use these instead of those that it was built with, and no others that were given before."""

    def limit(self, budget: int | None) -> None:
        """At most so many bytes of them on the device from the next call on; None for all."""

    def close(self) -> None:
        """Give all memory back, until the next call."""


def resident_share(plan: MemoryPlan, stage: str) -> float:
    """The share of a stage's weights that a plan keeps on the device, buffers included."""
    planned = plan.stage(stage)
    count = len(planned.resident) + len(planned.streamed)
    return min(1.0, (len(planned.resident) + planned.buffers) / count) if count else 1.0


class BakedWeights(WeightManager):
    """Stands where WeightManager does, for a folder whose engines hold their weights: `take` gives no tensors.

    Args:
        engines: the loaded engines by the name of their graph; filled while a folder is opened.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, copy_stream: CopyStream):
        super().__init__(checkpoint, device, dtype, copy_stream)
        self.engines: dict[str, Holder] = {}

    def bind(self, graph: Graph, names: Sequence[str]) -> None:
        """There is nothing to bind; the graph says what a LoRA changes."""
        self._graphs[graph.name] = (graph, names)

    def _renew(self, changed: frozenset[str]) -> None:
        for name in self.engines:
            self._refit(name, changed)

    def _refit(self, name: str, changed: frozenset[str]) -> None:
        """An engine has the weights of now, if it reads one of those that changed."""
        store, now = DeviceWeights(self.tensors, torch.device("cpu"), self.dtype), self.tensors.names
        graph, _ = self._graphs[name]
        if graph.part == PART and reads(graph, list(graph.weights), 0, changed):
            names = [weight for weight in graph.weights if reads(graph, [weight], 0, now)]
            self.engines[name].refit(dict(zip(names, store.layer(graph, names, 0), strict=True)))

    def hold(self, name: str, engine: Any) -> None:
        """Make an engine known, with the LoRAs that there are."""
        self.engines[name] = engine
        self._refit(name, self.tensors.names)

    def use(self, plan: MemoryPlan | None) -> None:
        if plan != self.plan:
            self.evict()
            self.plan = plan

    def acquire(self, name: str, layer: int) -> Sequence[Tensor]:
        if self.plan is not None and not self.plan.held and self._stage_of(name) != self._stage:
            self.evict()
            self._stage = self._stage_of(name)
            self._limit(self.plan)
        return ()

    def release(self, name: str, layer: int) -> None:
        """The engine keeps them."""

    def enter(self, stage: str) -> None:
        """TensorRT brings weights when an engine is called."""

    def scratch(self, stage: str | None = None) -> AbstractContextManager[None]:
        """TensorRT has memory of its own."""
        return nullcontext()

    def evict(self) -> None:
        """End the present stage: its engines give their memory back, and what was recorded of them is void."""
        if self.captures is not None:
            self.captures.clear()
        for name, engine in self.engines.items():
            if self._stage is not None and self._stage_of(name) == self._stage:
                engine.close()
        self._stage = None

    def _limit(self, plan: MemoryPlan) -> None:
        here = {name: engine for name, engine in self.engines.items() if self._stage_of(name) == self._stage}
        sizes = {name: engine.streamable for name, engine in here.items()}
        assert self._stage is not None
        budget = int(resident_share(plan, self._stage) * sum(sizes.values()))
        for name, share in shares(budget, sizes).items():
            here[name].limit(share)
        self.source = "TensorRT's own streaming"
