"""The tensors that calls take: put together from a checkpoint, with LoRAs in them, on the device or on the host."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..checkpoint.weight_files import to_aligned
from ..graphs.graph import Graph
from ..lora.weights import PART, LoraPatchedCheckpoint
from ..memory.allocator import aligned


class DeviceWeights:
    """The tensors of a model on a device; one that several graphs share is held once."""

    def __init__(self, tensors: LoraPatchedCheckpoint, device: torch.device, dtype: torch.dtype):
        self.tensors, self.device, self.dtype = tensors, device, dtype
        self._held: dict[tuple[str, ...], Tensor] = {}
        self._others: set[tuple[str, ...]] = set()  # of these, what is another's memory

    def layer(self, graph: Graph, names: Sequence[str], layer: int) -> tuple[Tensor, ...]:
        """The tensors of one layer's call, in the order of `names`."""
        dtype, found = graph.dtype(self.dtype), []
        for name in names:
            key = (graph.part, *graph.sources(name, layer))
            if key not in self._held and not self._take(key, dtype):
                self._held[key] = self._load(key, dtype)
            found.append(self._held[key])
        return tuple(found)

    def pack(self, graphs: Mapping[str, tuple[Graph, Sequence[str]]], buffer: Callable[[int], Tensor]) -> None:
        """Hold all layers of these graphs, so far as they are not, in one piece of memory: the allocator rounds once.

        Args:
            buffer: makes uint8 [n] on the device.
        """
        wanted = {
            (graph.part, *graph.sources(name, layer)): (graph.weights[name], graph.dtype(self.dtype))
            for graph, names in graphs.values()
            for layer in range(len(graph.layers))
            for name in names
        }
        wanted = {key: kind for key, kind in wanted.items() if key not in self._held and not self._take(key, kind[1])}
        offset, flat = 0, buffer(sum(aligned(shape.numel() * dtype.itemsize) for shape, dtype in wanted.values()))
        for key, (shape, dtype) in wanted.items():
            size = shape.numel() * dtype.itemsize
            place = flat[offset : offset + size].view(dtype).view(shape)
            offset += aligned(size)
            self._held[key] = self._load(key, dtype, place)

    def _take(self, key: tuple[str, ...], dtype: torch.dtype) -> bool:
        """Hold tensors where they are, if they are where they belong."""
        part, *sources = key
        found = self.tensors.in_place(part, sources, self.device, dtype)
        if found is None:
            return False
        self._held[key] = found
        self._others.add(key)
        return True

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
            if key in self._others:
                self._others.remove(key)
            elif self.device.type == "cuda":
                self._held[key] = self._load(key, place.dtype, place)

    @property
    def bytes(self) -> int:
        """Of all that was copied here, each tensor rounded up as the allocator does."""
        return sum(aligned(tensor.nbytes) for key, tensor in self._held.items() if key not in self._others)
