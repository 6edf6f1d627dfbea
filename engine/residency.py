"""Where the weights of a call are: on the device for good, for the length of a stage, or on their way through a ring.

The loop does not know: it takes the tensors of a call, and says when it has used them. The values are the same bytes
wherever they come from.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .capture import Captures
from .checkpoint import Checkpoint
from .graphs import Graph, weight_shapes
from .memory import MemoryPlan
from .random_weights import RandomWeights
from .sizes import STAGE_OF, STREAMABLE, Key, aligned, packed_bytes
from .stream import Conveyor, Lane

PINNED_SHARE = 0.5  # of the memory that the host has free: the rest is for the page cache and others


class WeightStore:
    """The tensors of a checkpoint on a device; one that several graphs share is held once."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype):
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self._held: dict[tuple[str, ...], Tensor] = {}

    def _tensor(self, part: str, sources: tuple[str, ...], dtype: torch.dtype) -> Tensor:
        key = (part, *sources)
        if key not in self._held:
            pieces = [self.checkpoint.tensor(part, s, self.device).to(dtype) for s in sources]
            self._held[key] = pieces[0].contiguous() if len(pieces) == 1 else torch.cat(pieces)
        return self._held[key]

    def layer(self, graph: Graph, names: Sequence[str], layer: int) -> tuple[Tensor, ...]:
        """The tensors of one layer's call, in the order of `names`."""
        dtype = graph.dtype(self.dtype)
        return tuple(self._tensor(graph.part, graph.sources(name, layer), dtype) for name in names)

    @property
    def bytes(self) -> int:
        """Of all that is held, each tensor rounded up as the allocator does."""
        return sum(aligned(tensor.nbytes) for tensor in self._held.values())


class HostWeights:
    """Units of a checkpoint as copies of them start: packed in pinned memory, or tensor by tensor from the file.

    Args:
        dtype: that the graphs run in.
        device: that the graphs run on.
        keep: whether units that are copied again and again are kept in pinned memory; None decides by what is free.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, lane: Lane,
                 keep: bool | None = None):  # fmt: skip
        self.checkpoint, self.dtype, self.device, self.lane, self.keep = checkpoint, dtype, device, lane, keep
        self._flat: dict[Key, Tensor] = {}
        self._shapes: dict[str, dict[str, torch.Size]] = {}

    def shapes(self, graph: Graph) -> dict[str, torch.Size]:
        """weight_shapes of a graph; making its module takes a while."""
        if graph.name not in self._shapes:
            self._shapes[graph.name] = weight_shapes(graph.module())
        return self._shapes[graph.name]

    def size(self, graph: Graph) -> int:
        """Bytes of one call's weights in one piece."""
        return packed_bytes(self.shapes(graph), graph.dtype(self.dtype).itemsize)

    def views(self, graph: Graph, names: Sequence[str], buffer: Tensor) -> tuple[Tensor, ...]:
        """The tensors of a call in a unit's buffer, uint8 [n], each at a multiple of ALIGN."""
        found, offset = [], 0
        for name in names:
            shape, dtype = self.shapes(graph)[name], graph.dtype(self.dtype)
            size = shape.numel() * dtype.itemsize
            found.append(buffer[offset : offset + size].view(dtype).view(shape))
            offset += aligned(size)
        return tuple(found)

    def pin(self, graphs: Mapping[str, tuple[Graph, Sequence[str]]], keys: Sequence[Key]) -> bool:
        """Read units into pinned memory, where they stay; False where the host has too little for them."""
        new = [key for key in keys if key not in self._flat]
        sizes = {key: self.size(graphs[key[0]][0]) for key in new}
        keep = self.keep
        if keep is None:
            random = isinstance(self.checkpoint, RandomWeights)  # there is no file to read them from
            keep = random or (self.device.type == "cuda" and sum(sizes.values()) <= PINNED_SHARE * host_memory_free())
        for key in new if keep else []:
            flat = self.lane.host(sizes[key])
            graph, names = graphs[key[0]]
            for view, pieces in zip(self.views(graph, names, flat), self._pieces(graph, names, key[1]), strict=True):
                for part, piece in zip(_rows(view, pieces), pieces, strict=True):
                    part.copy_(piece)
            self._flat[key] = flat
        return all(key in self._flat for key in keys)

    def fill(self, graph: Graph, names: Sequence[str], layer: int, buffer: Tensor) -> int:
        """Queue the copies of a unit into a buffer on the device; the bytes that they move."""
        flat = self._flat.get((graph.name, layer))
        if flat is not None:
            self.lane.copy(buffer[: len(flat)], flat)
            return len(flat)
        for view, pieces in zip(self.views(graph, names, buffer), self._pieces(graph, names, layer), strict=True):
            for part, piece in zip(_rows(view, pieces), pieces, strict=True):
                # From memory that is not pinned the driver takes a copy before this returns: `piece` may go.
                self.lane.copy(part, piece.to(part.dtype))
        return self.size(graph)

    def _pieces(self, graph: Graph, names: Sequence[str], layer: int) -> list[list[Tensor]]:
        # Random weights differ from device to device; what a resident engine would have is drawn here too.
        where = self.device if isinstance(self.checkpoint, RandomWeights) else "cpu"
        tensor = self.checkpoint.tensor
        return [[tensor(graph.part, s, where).cpu() for s in graph.sources(name, layer)] for name in names]


def _rows(view: Tensor, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
    """The parts of a stacked tensor that the checkpoint's tensors go to."""
    return [view] if len(pieces) == 1 else view.split([len(piece) for piece in pieces])


class Residency:
    """The weights of all graphs as a plan has them. Without a plan they are all on the device, as soon as bound."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, lane: Lane):
        self.checkpoint, self.device, self.dtype, self.lane = checkpoint, device, dtype, lane
        self.host = HostWeights(checkpoint, dtype, device, lane)
        self.plan: MemoryPlan | None = None
        self.captures: Captures | None = None  # recordings that know addresses of weights
        self.copied = 0
        self.source = ""
        self._graphs: dict[str, tuple[Graph, Sequence[str]]] = {}
        self._store = WeightStore(checkpoint, device, dtype)
        self._stage: str | None = None
        self._conveyor: Conveyor | None = None
        self._prepared: tuple[str, Conveyor] | None = None  # the next stage, whose first weights are on their way
        self._bound: dict[Key, tuple[Tensor, ...]] = {}
        self._passes: dict[str, int] = {}

    def bind(self, graph: Graph, names: Sequence[str]) -> None:
        """Make a graph known; `names` is the order of its weights in a call."""
        self._graphs[graph.name] = (graph, names)
        if self.plan is None or self.plan.held:
            for layer in range(len(graph.layers)):
                self._resident((graph.name, layer))

    def use(self, plan: MemoryPlan | None) -> None:
        """From now on, as this plan says."""
        if plan == self.plan:
            return
        self.leave()  # recordings too are made anew
        if plan is not None and not plan.held:
            self._store, self._bound = WeightStore(self.checkpoint, self.device, self.dtype), {}
        self.plan = plan

    def take(self, name: str, layer: int) -> Sequence[Tensor]:
        """The tensors of a call. The first call of a stage ends the stage before."""
        key = (name, layer)
        if self.plan is None or self.plan.held:
            return self._resident(key)
        if STAGE_OF[name] != self._stage:
            self._enter(STAGE_OF[name])
        if name not in STREAMABLE or self._conveyor is None:
            return self._bound[key]
        return self.host.views(*self._graphs[name], self._conveyor.take(key))

    def done(self, name: str, layer: int) -> None:
        """The call is queued."""
        if self._conveyor is not None and name in STREAMABLE:
            self._conveyor.done((name, layer))

    def expect(self, stage: str, passes: int) -> None:
        """How often a stage will go through its weights when it begins; 1 where nobody says."""
        self._passes[stage] = passes

    def leave(self) -> None:
        """End the present stage: its weights leave the device, and what was prepared of the next."""
        self._drop()
        if self.captures is not None:
            self.captures.clear()
        if self._conveyor is not None:
            self._conveyor.close()
        if self._stage is not None:
            self._conveyor, self._stage, self._bound = None, None, {}
            self._store = WeightStore(self.checkpoint, self.device, self.dtype)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # what the next stage asks for has other sizes

    def _resident(self, key: Key) -> tuple[Tensor, ...]:
        if key not in self._bound:
            self._bound[key] = self._store.layer(*self._graphs[key[0]], key[1])
        return self._bound[key]

    def _enter(self, stage: str) -> None:
        """End the present stage and begin another, with what is prepared if it is of that stage."""
        ready = self._prepared[1] if self._prepared is not None and self._prepared[0] == stage else None
        if ready is not None:
            self._prepared = None
        self.leave()
        self._stage, self._conveyor = stage, ready or self._conveyor_of(stage)
        for name, (graph, _) in self._graphs.items():
            if STAGE_OF[name] == stage and name not in STREAMABLE:
                for layer in range(len(graph.layers)):
                    self._resident((name, layer))
        self.copied += self._store.bytes
        if self._conveyor is None:
            self._ahead()
        else:
            self._conveyor.begin(self._passes.get(stage, 1))

    def _conveyor_of(self, stage: str) -> Conveyor | None:
        """What brings the units of a stage, with nothing allocated; None where no weights may stream."""
        assert self.plan is not None
        planned = self.plan.stage(stage)
        streamed = frozenset(planned.streamed)
        order = [
            (name, layer)
            for name in STREAMABLE
            if STAGE_OF[name] == stage and name in self._graphs
            for layer in range(len(self._graphs[name][0].layers))
        ]
        if not order:
            return None
        if stage == "denoise" and streamed:
            pinned = self.host.pin(self._graphs, planned.streamed)
            self.source = "pinned memory" if pinned else "page cache"
        sizes = {key: self.host.size(self._graphs[key[0]][0]) for key in order}
        return Conveyor(
            self.lane, order, sizes, streamed, planned.buffers, planned.buffer_bytes, self._fill, self._ahead
        )  # fmt: skip

    def _ahead(self) -> None:
        """The present stage copies nothing more: the first weights of the next come, as far as the plan has room."""
        assert self.plan is not None
        assert self._stage is not None
        keys = self.plan.stage(self._stage).ahead
        if not keys or self._prepared is not None:
            return
        stage = STAGE_OF[keys[0][0]]
        conveyor = self._conveyor_of(stage)
        if conveyor is not None:
            self._prepared = stage, conveyor
            conveyor.prepare(keys)

    def _drop(self) -> None:
        if self._prepared is not None:
            self._prepared[1].close()
            self._prepared = None

    def _fill(self, key: Key, buffer: Tensor) -> None:
        self.copied += self.host.fill(*self._graphs[key[0]], key[1], buffer)


def device_memory_free(device: torch.device) -> int:
    """Bytes that a budget of "auto" starts from: what the driver says is free, and what PyTorch holds already."""
    if device.type != "cuda":
        return host_memory_free()
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def host_memory_free() -> int:
    """Bytes that the host can still give: the system's, or the control group's where that is less."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, StopIteration, ValueError):
        pass  # not Linux, or no such control group
    return max(0, free)
