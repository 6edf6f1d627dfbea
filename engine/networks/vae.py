"""The CogVideoX autoencoder through diffusers' own modules, with the convolution caches as a flat list.

The decoder works through time in chunks and hands every causal convolution the last frames that it saw. diffusers
keeps one tensor per convolution, but a convolution whose time kernel is 1 never reads its own: those are left out.
Which ones are live follows from the modules.
"""

import re
from typing import Any

from torch import Tensor, nn

from ..variants import VaeConfig

Cache = dict[str, Any]


def _decoder(config: VaeConfig) -> nn.Module:
    # diffusers is imported where a module of it is made: engines of other backends run without its models.
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXDecoder3D

    return CogVideoXDecoder3D(
        in_channels=config.latent_channels,
        up_block_types=("CogVideoXUpBlock3D",) * len(config.block_out_channels),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_eps=config.norm_eps,
        norm_num_groups=config.norm_num_groups,
        temporal_compression_ratio=config.temporal_compression_ratio,
    )


def _encoder(config: VaeConfig) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXEncoder3D

    return CogVideoXEncoder3D(
        out_channels=config.latent_channels,
        down_block_types=("CogVideoXDownBlock3D",) * len(config.block_out_channels),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_eps=config.norm_eps,
        norm_num_groups=config.norm_num_groups,
        temporal_compression_ratio=config.temporal_compression_ratio,
    )


def live_caches(decoder: nn.Module) -> list[tuple[str, ...]]:
    """Where in diffusers' nested cache dictionary the tensors lie that a next chunk reads."""
    paths = []
    for name, module in decoder.named_modules():
        if getattr(module, "time_kernel_size", 1) > 1:
            # up_blocks.0.resnets.1.conv1 is cached as ["up_block_0"]["resnet_1"]["conv1"].
            paths.append(tuple(re.sub(r"(\w+?)s\.(\d+)", r"\1_\2", name).split(".")))
    return paths


def _flatten(cache: Cache, paths: list[tuple[str, ...]]) -> list[Tensor]:
    flat = []
    for path in paths:
        node: Any = cache
        for key in path:
            node = node[key]
        flat.append(node)
    return flat


def _nest(flat: tuple[Tensor, ...], paths: list[tuple[str, ...]]) -> Cache:
    cache: Cache = {}
    for path, tensor in zip(paths, flat, strict=True):
        node = cache
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = tensor
    return cache


class Encoder(nn.Module):
    """Frames [B, 3, 1, H, W] in [-1, 1] -> moments [B, 2 * 16, 1, h, w]: mean and log variance of the posterior."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.encoder = _encoder(config)

    def forward(self, frames: Tensor) -> Tensor:
        return self.encoder(frames)[0]


class FirstChunk(nn.Module):
    """Latents [B, 16, n, h, w] -> frames [B, 3, 4 n - 3 or 4 n, H, W] in [-1, 1], then the live caches.

    An odd number of latent frames gives 4 n - 3 frames: the first is a picture by itself.
    """

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.decoder = _decoder(config)
        self.paths = live_caches(self.decoder)

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        frames, cache = self.decoder(latents)
        return (frames, *_flatten(cache, self.paths))


class NextChunk(FirstChunk):
    """Latents [B, 16, 2, h, w] and the caches of the chunk before -> frames [B, 3, 8, H, W], then the live caches."""

    def forward(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        frames, cache = self.decoder(latents, conv_cache=_nest(caches, self.paths))
        return (frames, *_flatten(cache, self.paths))
