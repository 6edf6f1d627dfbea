"""Where the weights of a call are: resident for good, resident for one stage, or streamed through a ring of buffers.

The denoising loop does not know: it acquires the tensors of a call and releases them when the call is queued. They have
the same bytes wherever they come from.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..checkpoint.reading import Checkpoint
from ..graphs.graph import Graph
from ..lora.weights import Active, LoraPatchedCheckpoint, reads
from ..memory.arena import Arena, prepare_libraries
from ..memory.costs import Key
from ..memory.plans import MemoryPlan
from ..runtime.cuda_graphs import Captures
from .copy_stream import CopyStream
from .device import DeviceWeights
from .gather import Gatherer, Others
from .host import PinnedHostWeights
from .prefetch import Prefetcher


class WeightManager:
    """The weights of all graphs as a plan has them. Without a plan they are all on the device, as soon as bound.

    Attributes:
        version: another number when other LoRAs are in the weights.
        peaks: the most that was reserved of a GPU in each stage that has ended, bytes; whoever reads them clears them.
        others: devices that may keep a part of what streams; None where there are none.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, copy_stream: CopyStream):
        self.device, self.dtype, self.copy_stream = device, dtype, copy_stream
        self.tensors = LoraPatchedCheckpoint(checkpoint)
        self.host = PinnedHostWeights(self.tensors, dtype, device, copy_stream)
        self.version = 0
        self.peaks: dict[str, int] = {}
        self.others: Others | None = None
        self.plan: MemoryPlan | None = None
        self.captures: Captures | None = None  # recordings that know addresses of weights
        self.copied = 0
        self.source = ""
        self._graphs: dict[str, tuple[Graph, Sequence[str]]] = {}
        self._store = DeviceWeights(self.tensors, device, dtype)
        self._stage: str | None = None
        self._prefetcher: Prefetcher | None = None
        self._prepared: tuple[str, Prefetcher] | None = None  # the next stage, whose first weights are on their way
        self._bound: dict[Key, tuple[Tensor, ...]] = {}
        self._passes: dict[str, int] = {}
        self._arena: Arena | None = None
        self._prepared_libraries = False

    def bind(self, graph: Graph, names: Sequence[str]) -> None:
        """Make a graph known; `names` is the order of its weights in a call."""
        self._graphs[graph.name] = (graph, names)
        if self.plan is None or self.plan.held:
            if self.device.type == "cuda":
                self._store.pack({graph.name: (graph, names)}, self.copy_stream.buffer)
            for layer in range(len(graph.layers)):
                self._resident((graph.name, layer))

    def _stage_of(self, name: str) -> str:
        return self._graphs[name][0].stage

    def use(self, plan: MemoryPlan | None) -> None:
        """From now on, as this plan says."""
        if plan == self.plan:
            return
        self.evict()  # recordings too are made anew
        if plan is not None and not plan.held:
            self._store, self._bound = DeviceWeights(self.tensors, self.device, self.dtype), {}
        self.plan = plan
        self.tidy()
        self.note_peak()

    def set_loras(self, active: Active) -> None:
        """From now on, with these LoRAs in the transformer's weights."""
        changed = self.tensors.use(active)
        if changed:
            self.version += 1
            self.evict()
            self._renew(changed)
            self.tensors.done()

    def _renew(self, changed: frozenset[str]) -> None:
        """These tensors of the transformer are others now."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # nothing reads what is written now
        self._store.renew(changed)
        others = [key for key in self._bound if reads(*self._graphs[key[0]], key[1], changed)]
        for key in others:
            del self._bound[key]
        for key in others:
            self._resident(key)
        self.host.renew(self._graphs, changed)

    def acquire(self, name: str, layer: int) -> Sequence[Tensor]:
        """The tensors of a call. The first call of a stage ends the stage before."""
        key = (name, layer)
        if self.plan is None or self.plan.held:
            self._arena_of(self._stage_of(name))
            return self._resident(key)
        if self._stage_of(name) != self._stage:
            self._enter(self._stage_of(name))
        if self._prefetcher is None or not self._graphs[name][0].streams:
            return self._bound[key]
        return self.host.views(*self._graphs[name], self._prefetcher.acquire(key))

    def release(self, name: str, layer: int) -> None:
        """The call is queued."""
        if self._prefetcher is not None and self._graphs[name][0].streams:
            self._prefetcher.release((name, layer))

    def scratch(self, stage: str | None = None) -> AbstractContextManager[None]:
        """What is made inside comes from memory that the plan has for it, and is gone at the end of the stage.

        Args:
            stage: which begins if it has not; None for the present one.
        """
        return self._arena_of(stage) or nullcontext()

    def keep(self, tensor: Tensor) -> Tensor:
        """What scratch memory holds, where it is not gone at the end of the stage: a copy, unless nothing was planned,
        or a block of `scratch` is open."""
        return tensor if self._arena is None or self._arena.depth else tensor.clone()

    def _arena_of(self, stage: str | None) -> Arena | None:
        plan = self.plan
        if plan is None or self.device.type != "cuda" or self.captures is not None:
            return None
        if stage is not None and stage != self._stage:
            if plan.held:
                self.evict()
                self._stage = stage
                self._open_arena(plan.stage(stage).arena)
            else:
                self._enter(stage)
        return self._arena

    def _open_arena(self, size: int) -> None:
        if not self._prepared_libraries:
            prepare_libraries(self.device, self.dtype)
            self._prepared_libraries = True
        torch.cuda.empty_cache()  # what loading weights has left
        self._arena = Arena(self.device, size)

    def enter(self, stage: str) -> None:
        """A stage begins before its first call, so that its weights are there by then."""
        if self.plan is not None and not self.plan.held and stage != self._stage:
            self._enter(stage)

    def together(self, stage: str, units: int | None = None) -> AbstractContextManager[None]:
        """Inside, all devices go once through the weights of a stage, or its first units, each in the same order."""
        if self.others is None or self.plan is None or self.plan.stage(stage).holders == 1:
            return nullcontext()
        self.enter(stage)
        assert isinstance(self._prefetcher, Gatherer)
        return self._prefetcher.together(units)

    def expect(self, stage: str, passes: int) -> None:
        """How often a stage will go through its weights when it begins, or from now on; 1 where nobody says."""
        self._passes[stage] = passes
        if stage == self._stage and self._prefetcher is not None:
            self._prefetcher.expect(passes)

    def expected(self, stage: str) -> int:
        """What was said by `expect`."""
        return self._passes.get(stage, 1)

    def names(self, name: str) -> Sequence[str]:
        """The weights of a graph, in the order of its call."""
        return self._graphs[name][1]

    def evict(self) -> None:
        """End the present stage: its weights leave the device, and what was prepared of the next."""
        self.note_peak()
        self._drop()
        if self.captures is not None:
            self.captures.clear()
        if self._prefetcher is not None:
            self._prefetcher.close()
        ended, self._arena = self._arena is not None, None
        if ended or self._stage is not None:
            self._stage = None
            if self.plan is None or not self.plan.held:
                self._prefetcher, self._bound = None, {}
                self._store = DeviceWeights(self.tensors, self.device, self.dtype)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # what the next stage asks for has other sizes
                torch.cuda.reset_peak_memory_stats(self.device)

    def tidy(self) -> None:
        """What earlier stages have let go of goes back to the device, where a plan counts what is reserved: a small
        tensor that is made next would be placed in a large piece of it, which it would keep."""
        if self.plan is not None and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def note_peak(self) -> None:
        """Remember what the present stage reserved, and count anew."""
        if self.device.type == "cuda":
            if self._stage is not None:
                peak = torch.cuda.max_memory_reserved(self.device)
                self.peaks[self._stage] = max(peak, self.peaks.get(self._stage, 0))
            torch.cuda.reset_peak_memory_stats(self.device)

    def _resident(self, key: Key) -> tuple[Tensor, ...]:
        if key not in self._bound:
            self._bound[key] = self._store.layer(*self._graphs[key[0]], key[1])
        return self._bound[key]

    def _enter(self, stage: str) -> None:
        """End the present stage and begin another, with what is prepared if it is of that stage."""
        ready = self._prepared[1] if self._prepared is not None and self._prepared[0] == stage else None
        if ready is not None:
            self._prepared = None
        self.evict()
        self._stage, self._prefetcher = stage, ready or self._prefetcher_of(stage)
        fixed = {
            name: entry
            for name, entry in self._graphs.items()
            if entry[0].stage == stage and not entry[0].streams
        }  # fmt: skip
        if fixed:
            self._store.pack(fixed, self.copy_stream.buffer)
        for name, (graph, _) in fixed.items():
            for layer in range(len(graph.layers)):
                self._resident((name, layer))
        self.copied += self._store.bytes
        if self._prefetcher is not None:
            self._prefetcher.begin(self._passes.get(stage, 1))
        if self.device.type == "cuda" and self.captures is None:
            assert self.plan is not None
            self._open_arena(self.plan.stage(stage).arena)
        if self._prefetcher is None:
            self._ahead()

    def _prefetcher_of(self, stage: str) -> Prefetcher | None:
        """What brings the units of a stage, with nothing allocated; None where no weights may stream."""
        assert self.plan is not None
        planned = self.plan.stage(stage)
        streamed = frozenset(planned.streamed)
        order = [
            (name, layer)
            for name, (graph, _) in self._graphs.items()
            if graph.stage == stage and graph.streams
            for layer in range(len(graph.layers))
        ]
        if not order:
            return None
        if stage == "denoise" and streamed:
            split = planned.holders > 1 and self.others is not None
            pinned = self.host.pin(self._graphs, planned.streamed, again=not split)
            self.source = f"{planned.holders} devices" if split else "pinned memory" if pinned else "page cache"
        sizes = {key: self.host.size(self._graphs[key[0]][0]) for key in order}
        belt = (self.copy_stream, order, sizes, streamed, planned.buffers, planned.buffer_bytes, self._fill)
        if planned.holders > 1 and self.others is not None:
            return Gatherer(*belt, others=self.others, holders=planned.holders, fill_part=self._fill_part)
        return Prefetcher(*belt, self._ahead, self._blocks)

    def _ahead(self) -> None:
        """The present stage copies nothing more: the first weights of the next come, as far as the plan has room."""
        assert self.plan is not None
        assert self._stage is not None
        keys = self.plan.stage(self._stage).ahead
        if not keys or self._prepared is not None:
            return
        stage = self._stage_of(keys[0][0])
        prefetcher = self._prefetcher_of(stage)
        if prefetcher is not None:
            self._prepared = stage, prefetcher
            prefetcher.prepare(keys)

    def _drop(self) -> None:
        if self._prepared is not None:
            self._prepared[1].close()
            self._prepared = None

    def _blocks(self, key: Key) -> bool:
        """Whether the host waits for the copy of a unit: from memory that is not pinned."""
        return self.device.type == "cuda" and not self.host.is_pinned(key)

    def _fill(self, key: Key, buffer: Tensor) -> None:
        self.copied += self.host.fill(*self._graphs[key[0]], key[1], buffer)

    def _fill_part(self, key: Key, part: Tensor, start: int) -> None:
        self.copied += self.host.fill_part(*self._graphs[key[0]], key[1], part, start)
