"""pixels -> latents of the face image, and latents -> frames, a few latent frames at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .chunks import Convert, spans
from .exact import exact
from .noise import draw
from .runtime import Networks
from .shapes import VideoShape
from .tiling import Tile, check_tile, encode_reference, tiled, tiled_reference

Generators = torch.Generator | list[torch.Generator] | None


def encode_image(networks: Networks, image: Image.Image, height: int, width: int, tile: Tile | None = None) -> Tensor:
    """The posterior of an RGB image brought to height x width (stretched, as the reference does): moments
    [1, 2 * 16, 1, h, w], mean and log variance. With `tile` as diffusers encodes after enable_tiling()."""
    pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    frames = torch.from_numpy(pixels / 255.0).permute(2, 0, 1)[None, :, None] * 2.0 - 1.0
    frames = frames.to(networks.device, networks.dtype)
    return networks.one("vae_encode", frames) if tile is None else encode_reference(networks, frames, tile)


def sample_posterior(moments: Tensor, batch: int, generator: Generators) -> Tensor:
    """Draw latents [batch, 1, 16, h, w] from the posterior of one image (unscaled).

    The draw comes before that of the noise from the same generator. One generator draws once for all samples, as in
    the reference; of a list each draws for its own.
    """
    mean, log_variance = moments.chunk(2, dim=1)
    std = (0.5 * log_variance.clamp(-30.0, 20.0)).exp()
    if not isinstance(generator, list):
        latents = mean + std * draw(mean.shape, generator, mean.device, mean.dtype)
        return latents.expand(batch, -1, -1, -1, -1).transpose(1, 2)
    return torch.cat([mean + std * draw(mean.shape, g, mean.device, mean.dtype) for g in generator]).transpose(1, 2)


def first_frames(moments: Sequence[Tensor], batch: int, generator: Generators, shape: VideoShape) -> Tensor:
    """Latents [batch, F, 16, h, w] that begin with a sample of each image; the other frames are zero."""
    latents = torch.cat([sample_posterior(image, batch, generator) for image in moments], dim=1)
    return F.pad(latents, (0, 0) * 3 + (0, shape.latent_frames - len(moments)))


def decode_chunks(networks: Networks, latents: Tensor) -> Iterator[Tensor]:
    """Frames [n, 3, H, W] in [-1, 1] on the device, in order, from latents [1, F, 16, h, w] (unscaled): the whole frame
    at once, by the engine's compiled graphs."""
    caches: tuple[Tensor, ...] = ()
    for begin, end in spans(latents.shape[1]):
        part = latents[:, begin:end].transpose(1, 2).contiguous()
        frames, *rest = networks.many("decode_next" if begin else "decode_first", part, *caches)
        caches = tuple(rest)
        yield frames[0].transpose(0, 1)


def whole(networks: Networks, latents: Tensor, tile: Tile, convert: Convert) -> Iterator[Tensor]:
    """Frames [n, H, W, 3] on the host; without tiles, whatever `tile` is."""
    return (convert(frames).cpu() for frames in decode_chunks(networks, latents))


# The ways to decode; each yields chunks in order. `tile` is (height, width) in latent pixels.
MODES: Mapping[str, Callable[[Networks, Tensor, Tile, Convert], Iterator[Tensor]]] = {
    "whole": whole,
    "tiled": tiled,
    "tiled-reference": tiled_reference,
    "exact": exact,
}


def to_unit(frames: Tensor) -> Tensor:
    """Frames [n, 3, H, W] in [-1, 1] -> [n, H, W, 3] in [0, 1], clamped."""
    return (frames * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def to_uint8(frames: Tensor) -> Tensor:
    """Frames [n, 3, H, W] in [-1, 1] -> uint8 [n, H, W, 3], rounded, on the device that they are on."""
    return (to_unit(frames).float() * 255).round().to(torch.uint8)


# How a chunk is converted on the device, and what becomes of the chunks: float frames keep the engine's dtype as "pt".
OUTPUT_TYPES: Mapping[str, tuple[Convert, Callable[[Iterator[Tensor]], Any]]] = {
    "uint8": (to_uint8, lambda chunks: torch.cat(list(chunks)).numpy()),
    "np": (to_unit, lambda chunks: torch.cat(list(chunks)).float().numpy()),
    "pt": (to_unit, lambda chunks: torch.cat(list(chunks)).permute(0, 3, 1, 2).contiguous()),
    "pil": (to_uint8, lambda chunks: [Image.fromarray(frame.numpy()) for chunk in chunks for frame in chunk]),
    "stream": (to_uint8, lambda chunks: (frame.numpy() for chunk in chunks for frame in chunk)),
}


@torch.no_grad()
def frames_in_order(
    networks: Networks, latents: Tensor, convert: Convert, mode: str | None = None, tile: Tile | None = None
) -> Iterator[Tensor]:
    """Frames [n, H, W, 3] on the host, in order, from latents [1, F, 16, h, w] (unscaled)."""
    frames = MODES[mode or "whole"](networks, latents, check_tile(tile, networks.variant.vae), convert)
    while True:
        with networks.weights.scratch("decode"):
            chunk = next(frames, None)
        if chunk is None:
            return
        yield chunk


def finish(
    networks: Networks, latents: Tensor, output_type: str, mode: str | None = None, tile: Tile | None = None
) -> Any:
    """Frames of `output_type` from latents [b, F, 16, h, w] (unscaled), one entry per video; None for "latent".

    Videos are decoded one by one, and each chunk is converted and leaves the device as soon as it is decoded. "stream"
    gives iterators over frames uint8 [H, W, 3], and decodes as they are read.
    """
    if output_type == "latent":
        return None
    convert, join = OUTPUT_TYPES[output_type]
    return [join(frames_in_order(networks, video[None], convert, mode, tile)) for video in latents]
