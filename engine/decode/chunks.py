"""What every way of decoding shares: chunks of time, a decoder for any size, and tensors kept in host memory."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..backends import Runner
from ..errors import EngineError
from ..graphs.graph import weight_shapes
from ..networks.vae_decoder import Encoder, FirstChunk, NextChunk
from ..runtime.executor import GraphExecutor

Half = TypeVar("Half", bound=nn.Module)
Convert = Callable[[Tensor], Tensor]
"""Frames [n, 3, h, w] in [-1, 1] -> [n, h, w, 3] as the caller wants them, on the device that they are on."""


def empty_module(networks: GraphExecutor, kind: type[Half]) -> Half:
    """A half of the VAE without weights, on the meta device."""
    with torch.device("meta"):
        return kind(networks.variant.vae).eval().requires_grad_(False)


def named(module: nn.Module, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """The weights of a call by their names in the module.

    Raises:
        EngineError: an engine folder of another version, whose weights come in another order.
    """
    shapes = weight_shapes(module)
    if [w.shape for w in weights] != list(shapes.values()):
        raise EngineError("The engine folder lists the VAE's weights as another version did; build it again.")
    return dict(zip(shapes, weights, strict=True))


def any_size(networks: GraphExecutor) -> GraphExecutor:
    """The VAE operator by operator, whatever the backend, for tiles of any size."""

    def runner(kind: type[nn.Module]) -> Runner:
        module = empty_module(networks, kind)
        return lambda inputs, weights: functional_call(module, named(module, weights), tuple(inputs))

    kinds = {"vae_encode": Encoder, "decode_first": FirstChunk, "decode_next": NextChunk}
    return networks.under({name: runner(kind) for name, kind in kinds.items()})


class Host:
    """Tensors in host memory, pinned where the device is a GPU.

    Attributes:
        bytes: how much went to the host and back.
    """

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def put(self, place: Tensor, tensor: Tensor) -> None:
        """Into a place of a host tensor; returns when it is there."""
        self.bytes += tensor.nbytes
        place.copy_(tensor)

    def take(self, place: Tensor) -> Tensor:
        """A copy on the device. What `keep` put away on the same stream may still be under way."""
        self.bytes += place.nbytes
        return torch.empty(place.shape, dtype=place.dtype, device=self.device).copy_(place, non_blocking=True)

    def keep(self, tensor: Tensor) -> Tensor:
        """A whole tensor put away, to be taken back; only `take` may read it."""
        self.bytes += tensor.nbytes
        return self.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor, non_blocking=True)


class TileDecoder:
    """Decodes tiles chunk by chunk; what the convolutions of a tile hand on to its next chunk waits on the host."""

    def __init__(self, networks: GraphExecutor, latents: Tensor):
        self.networks, self.latents = any_size(networks), latents
        self.host = Host(latents.device)
        self._caches: dict[Hashable, list[Tensor]] = {}

    def __call__(self, span: tuple[int, int], rows: slice, columns: slice) -> Tensor:
        """Frames [n, 3, h, w] in [-1, 1] of a tile of the latents [1, F, 16, h, w]."""
        key = rows.start, columns.start
        part = self.latents[:, slice(*span), :, rows, columns].transpose(1, 2).contiguous()
        caches = [self.host.take(cache) for cache in self._caches.pop(key, ())]
        frames, *new = self.networks.many("decode_next" if span[0] else "decode_first", part, *caches)
        if span[1] < self.latents.shape[1]:
            self._caches[key] = [self.host.keep(cache) for cache in new]
        return frames[0].transpose(0, 1)
