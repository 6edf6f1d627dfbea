"""Videos that the authors' own pipeline made with small models of the 1.5 kind: which, and what came out.

The tensors are in authors.safetensors, which parity/authors.py writes from a clone of their repository; no code of
theirs is here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file

from consisid.engine.shapes import VideoShape
from consisid.engine.variants import TINY_1_5, Variant

from .drawn import random_1_5

FILE = Path(__file__).with_name("authors.safetensors")
SEEDS = (2, 3, 6, 11, 48, 60)
WEIGHTS, NOISE, STEPS = 3, 7, 3  # seeds of weights and noise; denoising steps
MODES = ((6.0, False), (6.0, True), (1.0, False))  # guidance, dynamic
SCHEDULERS = ("CogVideoXDPMScheduler", "CogVideoXDDIMScheduler")
FRAMES = (9, 17, 49)
SPARSE, LESS_SPARSE = 8, 4  # of the frames every so many pixels are kept


@dataclass(frozen=True)
class Case:
    """A video: of a model, with so many frames, a scheduler and a way of guidance."""

    model: str
    frames: int
    scheduler: str
    guidance: float
    dynamic: bool

    @property
    def name(self) -> str:
        kind = "dynamic" if self.dynamic else "guided" if self.guidance > 1 else "unguided"
        return f"{self.model}, {self.frames} frames, {self.scheduler.removeprefix('CogVideoX')[:4].rstrip('S')}, {kind}"

    @property
    def kept(self) -> bool:
        """Whether its tensors are in the file: of every model two short videos, of TINY_1_5 others too."""
        two = self.dynamic == (self.scheduler == SCHEDULERS[1]) and self.guidance > 1
        if self.model == TINY_1_5.name:
            return self.frames == 9 or (two and (self.frames == 17 or not self.dynamic))
        return self.frames == 9 and two


def models() -> dict[str, Variant]:
    """TINY_1_5, the same with the other scale of image latents, and six drawn at random."""
    other = replace(TINY_1_5, vae=replace(TINY_1_5.vae, invert_scale_latents=not TINY_1_5.vae.invert_scale_latents))
    drawn = {f"random {seed}": random_1_5(seed) for seed in SEEDS}
    return {TINY_1_5.name: TINY_1_5, f"{TINY_1_5.name}, other scale": other, **drawn}


def cases() -> Iterator[Case]:
    """All videos that were compared."""
    for model, frames, scheduler, mode in product(models(), FRAMES, SCHEDULERS, MODES):
        yield Case(model, frames, scheduler, *mode)


def kept() -> dict[str, torch.Tensor]:
    """The file: "<case>/latents" [F, 16, h, w] float32 with padding, "<case>/frames" [frames, h, w, 3] float16, and of
    each model of ROUNDED what theirs gives in float32 and their errors of latents and frames in bfloat16."""
    return load_file(FILE)


ROUNDED = (TINY_1_5.name, "random 3", "random 6")
"""Models that were compared in bfloat16 too."""


def given_tensors(variant: Variant) -> dict[str, torch.Tensor]:
    """Noise and embeddings of a video in which nothing is drawn: bfloat16 and float32 draw other numbers."""
    shape, config = VideoShape.of(variant, None, None, 17), variant.transformer
    generator = torch.Generator().manual_seed(1)
    size = (1, shape.loop_frames, variant.vae.latent_channels, shape.latent_height, shape.latent_width)
    text = (1, config.max_text_seq_length, config.text_embed_dim)
    return {
        "latents": torch.randn(size, generator=generator),
        "prompt_embeds": torch.randn(text, generator=generator),
        "negative_prompt_embeds": torch.randn(text, generator=generator),
    }


def distance(found: torch.Tensor, right: torch.Tensor) -> float:
    """Relative to what is right, in the norm of all numbers."""
    return float((found.float() - right).norm() / right.norm())
