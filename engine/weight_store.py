"""The tensors that calls take: put together from a checkpoint, with LoRAs in them, on the device or on the host."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .allocator import aligned
from .graphs import Graph, weight_shapes
from .lora import PART, Merged
from .random_weights import RandomWeights
from .sizes import Key, packed_bytes
from .stream import Lane
from .weight_files import to_aligned

PINNED_SHARE = 0.5  # of the memory that the host has free: the rest is for the page cache and others


class WeightStore:
    """The tensors of a model on a device; one that several graphs share is held once."""

    def __init__(self, tensors: Merged, device: torch.device, dtype: torch.dtype):
        self.tensors, self.device, self.dtype = tensors, device, dtype
        self._held: dict[tuple[str, ...], Tensor] = {}

    def layer(self, graph: Graph, names: Sequence[str], layer: int) -> tuple[Tensor, ...]:
        """The tensors of one layer's call, in the order of `names`."""
        dtype, found = graph.dtype(self.dtype), []
        for name in names:
            key = (graph.part, *graph.sources(name, layer))
            if key not in self._held:
                self._held[key] = self._load(key, dtype)
            found.append(self._held[key])
        return tuple(found)

    def pack(
        self, graphs: Mapping[str, tuple[Graph, Sequence[str]]],
        shapes: Callable[[Graph], Mapping[str, torch.Size]], buffer: Callable[[int], Tensor],
    ) -> None:  # fmt: skip
        """Hold all layers of these graphs, so far as they are not, in one piece of memory: the allocator rounds once.

        Args:
            shapes: of a graph's weights.
            buffer: makes uint8 [n] on the device.
        """
        wanted = {
            (graph.part, *graph.sources(name, layer)): (shapes(graph)[name], graph.dtype(self.dtype))
            for graph, names in graphs.values()
            for layer in range(len(graph.layers))
            for name in names
        }
        wanted = {key: kind for key, kind in wanted.items() if key not in self._held}
        offset, flat = 0, buffer(sum(aligned(shape.numel() * dtype.itemsize) for shape, dtype in wanted.values()))
        for key, (shape, dtype) in wanted.items():
            size = shape.numel() * dtype.itemsize
            place = flat[offset : offset + size].view(dtype).view(shape)
            offset += aligned(size)
            self._held[key] = self._load(key, dtype, place)

    def _load(self, key: tuple[str, ...], dtype: torch.dtype, place: Tensor | None = None) -> Tensor:
        part, *sources = key
        if place is None:
            pieces = [self.tensors.tensor(part, source, self.device, dtype) for source in sources]
            return to_aligned(pieces[0].contiguous()) if len(pieces) == 1 else torch.cat(pieces)
        first = 0
        for source in sources:
            piece = self.tensors.tensor(part, source, "cpu", dtype)  # converted where the file is read
            (place if len(sources) == 1 else place[first : first + len(piece)]).copy_(piece)
            first += len(piece) if len(sources) > 1 else 0
        return place

    def renew(self, changed: frozenset[str]) -> None:
        """These tensors of the transformer are others now; nothing reads what is made of them. On a GPU it is written
        where it was; on a CPU, where it may be a file's, it is forgotten."""
        others = [key for key in self._held if key[0] == PART and not changed.isdisjoint(key[1:])]
        for key in others:
            place = self._held.pop(key)
            if self.device.type == "cuda":
                self._held[key] = self._load(key, place.dtype, place)

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

    def __init__(self, tensors: Merged, dtype: torch.dtype, device: torch.device, lane: Lane,
                 keep: bool | None = None):  # fmt: skip
        self.tensors, self.dtype, self.device, self.lane, self.keep = tensors, dtype, device, lane, keep
        self._flat: dict[Key, Tensor] = {}
        self._merged: dict[str, Tensor] = {}  # with LoRAs in them: no file has these
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
        """The tensors of a call in a unit's buffer, uint8 [n], each at a multiple of allocator.BLOCK."""
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
            random = isinstance(self.tensors.checkpoint, RandomWeights)  # there is no file to read them from
            keep = random or (self.device.type == "cuda" and sum(sizes.values()) <= PINNED_SHARE * host_memory_free())
        for key in new if keep else []:
            flat = self.lane.host(sizes[key])
            self._write(*graphs[key[0]], key[1], flat)
            self._flat[key] = flat
        return all(key in self._flat for key in keys)

    def renew(self, graphs: Mapping[str, tuple[Graph, Sequence[str]]], changed: frozenset[str]) -> None:
        """These tensors of the transformer are others now; no copy is under way."""
        self._merged = {}
        for key, flat in self._flat.items():
            if reads(*graphs[key[0]], key[1], changed):
                self._write(*graphs[key[0]], key[1], flat)

    def _write(self, graph: Graph, names: Sequence[str], layer: int, flat: Tensor) -> None:
        dtype = graph.dtype(self.dtype)
        for view, name in zip(self.views(graph, names, flat), names, strict=True):
            pieces = [self._read(graph.part, source, dtype) for source in graph.sources(name, layer)]
            for part, piece in zip(_rows(view, pieces), pieces, strict=True):
                part.copy_(piece)

    def fill(self, graph: Graph, names: Sequence[str], layer: int, buffer: Tensor) -> int:
        """Queue the copies of a unit into a buffer on the device; the bytes that they move."""
        flat = self._flat.get((graph.name, layer))
        if flat is not None:
            self.lane.copy(buffer[: len(flat)], flat)
            return len(flat)
        dtype = graph.dtype(self.dtype)
        for view, name in zip(self.views(graph, names, buffer), names, strict=True):
            pieces = [self._kept(graph.part, source, dtype) for source in graph.sources(name, layer)]
            for part, piece in zip(_rows(view, pieces), pieces, strict=True):
                # From memory that is not pinned the driver takes a copy before this returns: `piece` may go.
                self.lane.copy(part, piece)
        return self.size(graph)

    def _read(self, part: str, source: str, dtype: torch.dtype) -> Tensor:
        return self.tensors.tensor(part, source, "cpu", dtype)

    def _kept(self, part: str, source: str, dtype: torch.dtype) -> Tensor:
        """A tensor that may be read again; with LoRAs in it it is kept while the host has room: a sum takes longer than
        a copy."""
        if source in self._merged and part == PART:
            return self._merged[source]
        tensor = self._read(part, source, dtype)
        if self.tensors.differs(part, source) and tensor.nbytes <= PINNED_SHARE * host_memory_free():
            self._merged[source] = tensor
        return tensor


def reads(graph: Graph, names: Sequence[str], layer: int, changed: frozenset[str]) -> bool:
    """Whether a call of a layer takes one of these tensors of the transformer."""
    return graph.part == PART and any(not changed.isdisjoint(graph.sources(name, layer)) for name in names)


def _rows(view: Tensor, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
    """The parts of a stacked tensor that the checkpoint's tensors go to."""
    return [view] if len(pieces) == 1 else view.split([len(piece) for piece in pieces])


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
