"""What every way of decoding shares: chunks of time, a decoder for any size, and tensors kept in host memory."""

from collections.abc import Callable, Hashable, Iterator

import torch
from torch import Tensor

from .errors import EngineError
from .graphs import weight_shapes
from .networks.vae import FirstChunk, NextChunk
from .runtime import Networks

Convert = Callable[[Tensor], Tensor]
"""Frames [n, 3, h, w] in [-1, 1] -> [n, h, w, 3] as the caller wants them, on the device that they are on."""


def chunks(latent_frames: int) -> list[int]:
    """How many latent frames are decoded at a time: diffusers' 3 + 2 + 2 + ..., or 2 + 2 + ... for an even number."""
    if latent_frames < 2:
        return [latent_frames]
    return [2 + latent_frames % 2] + [2] * (latent_frames // 2 - 1)


def spans(latent_frames: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each chunk."""
    begin = 0
    for count in chunks(latent_frames):
        yield begin, begin + count
        begin += count


def bound(networks: Networks, kind: type[FirstChunk]) -> FirstChunk:
    """The decoder as a module with the weights of the engine, whatever its backend: for sizes that no graph was
    compiled for."""
    with torch.device("meta"):
        module = kind(networks.variant.vae).eval().requires_grad_(False)
    weights = dict(zip(weight_shapes(module), networks.weights["decode_first"][0], strict=True))
    wrong = [name for name, shape in weight_shapes(module).items() if weights[name].shape != shape]
    if wrong:
        raise EngineError(
            f"The engine's decoder has other weights than this version expects ({wrong[0]}); build again."
        )
    module.load_state_dict(weights, assign=True)
    return module


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

    def __init__(self, networks: Networks, latents: Tensor):
        self.networks, self.latents = networks, latents
        self.first, self.next = bound(networks, FirstChunk), bound(networks, NextChunk)
        self.host = Host(latents.device)
        self._caches: dict[Hashable, list[Tensor]] = {}

    def __call__(self, span: tuple[int, int], rows: slice, columns: slice) -> Tensor:
        """Frames [n, 3, h, w] in [-1, 1] of a tile of the latents [1, F, 16, h, w]."""
        key = rows.start, columns.start
        part = self.latents[:, slice(*span), :, rows, columns].transpose(1, 2).contiguous()
        self.networks.calls["decode_tile"] += 1
        caches = [self.host.take(cache) for cache in self._caches.pop(key, ())]
        frames, *new = self.next(part, *caches) if span[0] else self.first(part)
        if span[1] < self.latents.shape[1]:
            self._caches[key] = [self.host.keep(cache) for cache in new]
        return frames[0].transpose(0, 1)
