"""What a call of a graph allocates and computes, counted on tensors that have shapes and no data.

The graph's own module runs once on fake tensors; every storage that an operator returns is counted while it lives.
What an operator takes for itself (workspaces of convolutions and matrix products) is not seen. What a compiler fuses
beyond our kernels allocates less than is counted here: an estimate from above, for eager and compiled alike.
"""

import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from consisid.kernels import whole

from .graphs import Graph, weight_shapes

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which the registry does not know


@dataclass(frozen=True)
class Count:
    """One call. inputs, outputs: bytes of what it takes and gives, weights apart. peak: the most bytes that it holds at
    once beside its inputs, outputs included. flops: of matrix products, convolutions and attention."""

    inputs: int
    outputs: int
    peak: int
    flops: float

    @property
    def working(self) -> int:
        """The most bytes while it runs: the caller holds the inputs."""
        return self.inputs + self.peak


class _Live(TorchDispatchMode):
    """Follows the storages that come and go while it is active."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.peak = 0
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._appeared(tensor.untyped_storage())
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif packet is CPU_ATTENTION:
            self.flops += sdpa_flop_count(*(x.shape for x in args[:3]))
        return out

    def _appeared(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def count(graph: Graph, sizes: Mapping[str, int], dtype: torch.dtype, fused: bool = False) -> Count:
    """Count one call of a graph.

    Args:
        sizes: its free ones, B samples, N steps, H x W pixels of a photo.
        fused: memory is that of our kernels, as on a GPU, instead of their references. FLOPs are the references'.
    """
    plain = _count(graph, sizes, dtype, fused=False)
    return replace(plain, peak=_count(graph, sizes, dtype, fused=True).peak) if fused else plain


def _count(graph: Graph, sizes: Mapping[str, int], dtype: torch.dtype, fused: bool) -> Count:
    module, specs, dtype = graph.module(), graph.specs().values(), graph.dtype(dtype)
    with FakeTensorMode(), torch.no_grad(), whole() if fused else nullcontext():
        weights = {name: torch.empty(shape, dtype=dtype) for name, shape in weight_shapes(module).items()}
        inputs = [
            torch.empty([sizes[n] if isinstance(n, str) else n for n in spec.shape], dtype=spec.dtype or dtype)
            for spec in specs
        ]
        live = _Live([*weights.values(), *inputs])
        with live:
            out = functional_call(module, weights, tuple(inputs))
        outputs = [out] if isinstance(out, Tensor) else list(out)
        return Count(_bytes(inputs), _bytes(outputs), live.peak, live.flops)


def _bytes(tensors: list[Tensor]) -> int:
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
