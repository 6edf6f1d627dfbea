"""Weights on the host as copies of them start: packed in pinned memory, or tensor by tensor from the page cache."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..checkpoint.random_weights import RandomWeights
from ..graphs.graph import Graph
from ..lora.weights import PART, LoraPatchedCheckpoint, reads
from ..memory.allocator import aligned
from ..memory.budget import show
from ..memory.costs import Key, packed_bytes
from ..memory.device import host_memory_free
from .copy_stream import CopyStream

PINNED_SHARE = 0.5  # of the memory that the host has free: the rest is for the page cache and others


class PinnedHostWeights:
    """Units of a checkpoint as copies of them start: packed in pinned memory, or tensor by tensor from the file.

    Args:
        dtype: that the graphs run in.
        device: that the graphs run on.
        keep: whether units that are copied again and again are kept in pinned memory; None decides by what is free.
    """

    def __init__(
        self, tensors: LoraPatchedCheckpoint, dtype: torch.dtype, device: torch.device, copy_stream: CopyStream,
        keep: bool | None = None,
    ):  # fmt: skip
        self.tensors, self.dtype, self.device, self.copy_stream, self.keep = tensors, dtype, device, copy_stream, keep
        self._flat: dict[Key, Tensor] = {}
        self._merged: dict[str, Tensor] = {}  # with LoRAs in them: no file has these

    def size(self, graph: Graph) -> int:
        """Bytes of one call's weights in one piece."""
        return packed_bytes(graph.weights, graph.dtype(self.dtype).itemsize)

    def views(self, graph: Graph, names: Sequence[str], buffer: Tensor) -> tuple[Tensor, ...]:
        """The tensors of a call in a unit's buffer, uint8 [n], each at a multiple of allocator.BLOCK."""
        found, offset = [], 0
        for name in names:
            shape, dtype = graph.weights[name], graph.dtype(self.dtype)
            size = shape.numel() * dtype.itemsize
            found.append(buffer[offset : offset + size].view(dtype).view(shape))
            offset += aligned(size)
        return tuple(found)

    def pin(self, graphs: Mapping[str, tuple[Graph, Sequence[str]]], keys: Sequence[Key], again: bool = True) -> bool:
        """Read units into pinned memory, where they stay; False where the host has too little for all of them, or
        refuses to pin it, which a warning says, or where they are not read again and there is a file."""
        new = [key for key in keys if key not in self._flat]
        sizes = {key: self.size(graphs[key[0]][0]) for key in new}
        keep = self.keep
        if keep is None:
            random = isinstance(self.tensors.checkpoint, RandomWeights)  # there is no file to read them from
            room = self.device.type == "cuda" and sum(sizes.values()) <= PINNED_SHARE * host_memory_free()
            keep = random or (again and room)
        for key in new if keep else []:
            flat = self.copy_stream.host(sizes[key])
            if flat is None:
                warnings.warn(
                    f"The system refused to pin {show(sizes[key])} of host memory, so weights come from the page "
                    "cache, and the host waits for each copy; raise the limit of locked memory (ulimit -l).",
                    stacklevel=2,
                )
                break
            self._write(*graphs[key[0]], key[1], flat)
            self._flat[key] = flat
        return all(key in self._flat for key in keys)

    def is_pinned(self, key: Key) -> bool:
        """Whether the copy of a unit is asynchronous."""
        return key in self._flat

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
            self.copy_stream.copy(buffer[: len(flat)], flat)
            return len(flat)
        dtype = graph.dtype(self.dtype)
        for view, name in zip(self.views(graph, names, buffer), names, strict=True):
            pieces = [self._kept(graph.part, source, dtype) for source in graph.sources(name, layer)]
            for part, piece in zip(_rows(view, pieces), pieces, strict=True):
                # From memory that is not pinned the driver takes a copy before this returns: `piece` may go.
                self.copy_stream.copy(part, piece)
        return self.size(graph)

    def fill_part(self, graph: Graph, names: Sequence[str], layer: int, part: Tensor, start: int) -> int:
        """Queue the copies of some bytes of a unit, from `start` on, into uint8 [n] on the device; the bytes that they
        move, fewer than n at the end of the unit."""
        flat = self._flat.get((graph.name, layer))
        if flat is not None:
            piece = flat[start : start + len(part)]
            self.copy_stream.copy(part[: len(piece)], piece)
            return len(piece)
        dtype, offset, moved = graph.dtype(self.dtype), 0, 0
        for name in names:
            place = offset
            for source in graph.sources(name, layer):
                tensor = self._kept(graph.part, source, dtype).contiguous().view(-1).view(torch.uint8)
                first, last = max(start, place), min(start + len(part), place + len(tensor))
                if first < last:
                    self.copy_stream.copy(part[first - start : last - start], tensor[first - place : last - place])
                    moved += last - first
                place += len(tensor)
            offset += aligned(place - offset)
        return moved

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


def _rows(view: Tensor, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
    """The parts of a stacked tensor that the checkpoint's tensors go to."""
    return [view] if len(pieces) == 1 else view.split([len(piece) for piece in pieces])
