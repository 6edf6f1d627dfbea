"""pixels -> latents of the face image, and latents -> frames, a few latent frames at a time."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .noise import draw
from .runtime import Networks
from .shapes import VideoShape

Generators = torch.Generator | list[torch.Generator] | None


def encode_image(networks: Networks, image: Image.Image, height: int, width: int) -> Tensor:
    """The posterior of an RGB image brought to height x width (stretched, as the reference does): moments
    [1, 2 * 16, 1, h, w], mean and log variance."""
    pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    frames = torch.from_numpy(pixels / 255.0).permute(2, 0, 1)[None, :, None] * 2.0 - 1.0
    return networks.one("vae_encode", frames.to(networks.device, networks.dtype))


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


def chunks(latent_frames: int) -> list[int]:
    """How many latent frames are decoded at a time: diffusers' 3 + 2 + 2 + ..., or 2 + 2 + ... for an even number."""
    if latent_frames < 2:
        return [latent_frames]
    return [2 + latent_frames % 2] + [2] * (latent_frames // 2 - 1)


def decode_chunks(networks: Networks, latents: Tensor) -> Iterator[Tensor]:
    """Frames [n, 3, H, W] in [-1, 1], in order, from latents [1, F, 16, h, w] (unscaled)."""
    caches: tuple[Tensor, ...] = ()
    start = 0
    for count in chunks(latents.shape[1]):
        part = latents[:, start : start + count].transpose(1, 2).contiguous()
        frames, *rest = networks.many("decode_next" if start else "decode_first", part, *caches)
        caches, start = tuple(rest), start + count
        yield frames[0].transpose(0, 1)


# How a chunk leaves the device, and how the chunks become one video.
OUTPUT_TYPES: dict[str, tuple[Callable[[Tensor], Any], Callable[[list[Any]], Any]]] = {
    "uint8": (lambda frames: to_uint8(frames).cpu().numpy(), np.concatenate),
    "np": (lambda frames: to_unit(frames).float().permute(0, 2, 3, 1).cpu().numpy(), np.concatenate),
    "pt": (lambda frames: to_unit(frames).cpu(), torch.cat),
    "pil": (
        lambda frames: [Image.fromarray(frame) for frame in to_uint8(frames).cpu().numpy()],
        lambda chunks: list(chain(*chunks)),
    ),
}


def finish(networks: Networks, latents: Tensor, output_type: str) -> Any:
    """Frames of `output_type` from latents [b, F, 16, h, w] (unscaled), one entry per video; None for "latent".

    Each chunk is converted and leaves the device as soon as it is decoded.
    """
    if output_type == "latent":
        return None
    convert, join = OUTPUT_TYPES[output_type]
    return [join([convert(frames) for frames in decode_chunks(networks, video[None])]) for video in latents]


def to_unit(frames: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return (frames * 0.5 + 0.5).clamp(0, 1)


def to_uint8(frames: Tensor) -> Tensor:
    """Frames [n, 3, H, W] in [-1, 1] -> uint8 [n, H, W, 3], rounded, on the device that they are on."""
    return (to_unit(frames).float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
