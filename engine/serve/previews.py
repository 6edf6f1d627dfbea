"""How latents look, in a thousandth of the time of a decoder: a linear map from latents to colours.

The map is fitted to the engine's own encoder: a picture of many colours is encoded, and the colours of its 8 x 8 pixels
are expressed by its latents with the least squared error.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..decode.image import encode_image
from ..run.recovery import outside_runs

PATCH = 4  # latent pixels of one colour, so that what the encoder sees around them matters little
SIDE = 160  # pixels of a preview's long edge, at least


@dataclass(frozen=True)
class Preview:
    """weight: [channels + 1, 3], float32 on the CPU; the last row is added."""

    weight: Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, engine: Any) -> "Preview":
        """For the latents of an engine; its encoder runs once, in this thread's turn at the device."""
        shape, ratio = engine.shape, engine.variant.vae.spatial_ratio
        drawn = colours(shape.height, shape.width, ratio)
        with outside_runs(engine, "fitting previews", "Open the engine with more memory."):
            moments = encode_image(engine.networks(), drawn, shape.height, shape.width)
            latents = moments.chunk(2, dim=1)[0][0, :, 0].float().cpu() * engine.variant.vae.scaling_factor
        picture = np.asarray(drawn.resize((latents.shape[2], latents.shape[1]), Image.Resampling.BOX))
        wanted = torch.from_numpy(picture.astype(np.float32)).reshape(-1, 3) / 255
        return cls(torch.linalg.lstsq(with_ones(latents), wanted).solution)

    def jpeg(self, latents: Tensor) -> bytes:
        """The frame in the middle of latents [..., channels, h, w] as a small JPEG."""
        frames = latents.reshape(-1, *latents.shape[-3:])
        frame = frames[len(frames) // 2].float().cpu()
        rgb = (with_ones(frame) @ self.weight).clamp(0, 1).reshape(*frame.shape[1:], 3)
        picture = Image.fromarray((rgb.nan_to_num() * 255).round().to(torch.uint8).numpy())
        factor = max(1, -(-SIDE // max(picture.size)))
        larger = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        larger.save(file, "JPEG", quality=80)
        return file.getvalue()


def with_ones(latents: Tensor) -> Tensor:
    """[channels, h, w] -> [h * w, channels + 1]."""
    rows = latents.flatten(1).T
    return torch.cat((rows, torch.ones(len(rows), 1)), dim=1)


def colours(height: int, width: int, ratio: int) -> Image.Image:
    """A picture of random patches of one colour each; always the same."""
    side = ratio * PATCH
    drawn = np.random.default_rng(0).integers(0, 256, (-(-height // side), -(-width // side), 3), dtype=np.uint8)
    return Image.fromarray(drawn.repeat(side, 0).repeat(side, 1)[:height, :width])
