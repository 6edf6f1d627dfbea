"""pixels -> latents of the face image, and latents -> frames, a few latent frames at a time."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..configs import VaeConfig
from ..errors import InputError
from ..runtime.executor import GraphExecutor
from ..sampling import draw
from ..shapes import VideoShape
from .diffusers_tiles import encode_reference
from .tile import Tile

Generators = torch.Generator | list[torch.Generator] | None


def encode_image(
    networks: GraphExecutor, image: Image.Image | Tensor, height: int, width: int, tile: Tile | None = None
) -> Tensor:
    """The posterior of an RGB image brought to height x width (stretched, as the reference does), or of one that was,
    [1, 3, H, W] in [-1, 1]: moments [1, 2 * 16, 1, h, w], mean and log variance. With `tile` as diffusers encodes after
    enable_tiling()."""
    if isinstance(image, Tensor):
        frames = image[:, :, None]
    else:
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


def first_frames(
    moments: Sequence[Sequence[Tensor]], videos: Sequence[int], generator: Generators, shape: VideoShape, vae: VaeConfig
) -> Tensor:
    """Latents [b, F, 16, h, w] that begin with a sample of each image, scaled; the other frames are zero.

    Args:
        moments: of the images of each person.
        videos: how many of each person, b together.
        vae: of the model; it says how its latents are scaled. What is no photo, the drawn key points, never inversely.
    """
    begins = [sum(videos[:i]) for i in range(len(videos))]
    latents: list[Tensor] = []
    for images in zip(*moments, strict=True):  # the first image of each person, then the second: the reference's order
        own = [
            generator[i : i + n] if isinstance(generator, list) else generator
            for i, n in zip(begins, videos, strict=True)
        ]
        found = [sample_posterior(*each) for each in zip(images, videos, own, strict=True)]
        scale = vae.scaling_factor if latents else vae.image_scale
        latents.append((found[0] if len(found) == 1 else torch.cat(found)) * scale)
    begin = torch.cat(latents, dim=1)
    if len(latents) > shape.loop_frames:
        raise InputError("Key points take a latent frame of their own; ask for 9 frames or more.")
    return F.pad(begin, (0, 0) * 3 + (0, shape.loop_frames - len(latents)))
