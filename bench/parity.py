"""How wrong the engine is, beside how wrong diffusers is in the same dtype: both against diffusers in float32.

Everything random is taken out: the noise is given, the scheduler is DDIM without noise of its own, and the image's
latents are the posterior's mean, since float32 and bfloat16 draw other numbers from one seed.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consisid.engine import ConsisID

from .inputs import PROMPT, identity
from .peers import EAGER, Theirs, open_pipeline

CERTAIN = -30.0  # a log variance at which nothing is left to draw
STEPS = 4


def psnr(got: np.ndarray, right: np.ndarray) -> float | None:
    """Decibels of frames in [0, 1]; None where they are identical, which has no number."""
    error = float(np.mean((got.astype(np.float64) - right) ** 2))
    return None if error == 0 else -10 * math.log10(error)


@contextmanager
def scheduler(engine: ConsisID, other: Any) -> Iterator[None]:
    """Another scheduler in an engine, inside the block."""
    before, engine.scheduler = engine.scheduler, other
    try:
        yield
    finally:
        engine.scheduler = before


def certain(module: Any, inputs: Any, output: Any) -> Any:
    """A hook on the VAE's encoder: the mean as it is, no variance."""
    moments, cache = output
    mean, _ = moments.chunk(2, dim=1)
    return torch.cat((mean, torch.full_like(mean, CERTAIN)), dim=1), cache


def ddim(engine: ConsisID) -> Any:
    from diffusers import CogVideoXDDIMScheduler

    return CogVideoXDDIMScheduler.from_config(engine.scheduler.config)


class Comparison:
    """One video of given noise and embeddings by everyone."""

    def __init__(self, engine: ConsisID, steps: int):
        self.engine, self.steps, v, s = engine, min(steps, STEPS), engine.variant, engine.shape
        generator = torch.Generator().manual_seed(1)
        size = (1, s.latent_frames, v.vae.latent_channels, s.latent_height, s.latent_width)
        self.noise = torch.randn(size, generator=generator)
        with torch.no_grad():
            both = engine.text_encoder(engine.networks(), ["", PROMPT])
        self.negative, self.prompt = both.chunk(2)

    @torch.no_grad()
    def theirs(self, dtype: torch.dtype) -> tuple[list[Tensor], np.ndarray]:
        """Latents after each step, and frames [F, H, W, 3] in [0, 1], of diffusers."""
        engine, kept = self.engine, list[Tensor]()
        person = identity(engine.variant)
        pipeline = open_pipeline(engine, dtype)
        pipeline.scheduler = ddim(engine)
        pipeline.text_encoder = None  # the embeddings are given: its memory is not needed
        EAGER.place(pipeline, engine.device)

        def keep(_: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            kept.append(tensors["latents"].float().cpu())
            return tensors

        maker = Theirs.__new__(Theirs)  # for its arguments only: the pipeline is another
        maker.engine, maker.person, maker.steps = engine, person, self.steps
        cast = [x.to(engine.device, dtype) for x in (self.prompt, self.negative, self.noise)]
        handle = pipeline.vae.encoder.register_forward_hook(certain)
        try:
            final = pipeline(**maker.arguments(0, cast[0], cast[1], keep, latents=cast[2])).frames
        finally:
            handle.remove()
        video = pipeline.decode_latents(final)
        return kept, pipeline.video_processor.postprocess_video(video=video, output_type="np")[0]

    @torch.no_grad()
    def ours(self) -> tuple[list[Tensor], np.ndarray]:
        engine, kept = self.engine, list[Tensor]()
        person, networks = identity(engine.variant), engine.networks()
        size = engine.shape.height, engine.shape.width
        mean, variance = person.moments(networks, *size).chunk(2, dim=1)
        person.features(networks).moments[size] = torch.cat((mean, torch.full_like(variance, CERTAIN)), dim=1)

        def keep(_: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            kept.append(tensors["latents"].float().cpu())
            return {}

        with scheduler(engine, ddim(engine)):
            video = engine.generate(
                person, prompt_embeds=self.prompt, negative_prompt_embeds=self.negative, latents=self.noise, seed=0,
                num_inference_steps=self.steps, guidance_scale=6.0, callback_on_step_end=keep, output_type="np",
            )  # fmt: skip
        return kept, video.frames


def against(got: tuple[list[Tensor], np.ndarray], right: tuple[list[Tensor], np.ndarray]) -> dict[str, Any]:
    """Errors of latents per step (largest, and relative to the norm), PSNR and largest error of the frames."""
    pairs = list(zip(got[0], right[0], strict=True))
    return {
        "max_error_per_step": [float((a - b).abs().max()) for a, b in pairs],
        "relative_error_per_step": [float((a - b).norm() / b.norm()) for a, b in pairs],
        "frames_psnr_db": psnr(got[1], right[1]),
        "frames_max_error": float(np.abs(got[1] - right[1]).max()),
    }


def measure(engine: ConsisID, steps: int) -> dict[str, Any]:
    """The section of the report. The float32 reference is made first and let go before the next."""
    comparison = Comparison(engine, steps)
    reference = comparison.theirs(torch.float32)
    dtype = str(engine.dtype).removeprefix("torch.")
    same = reference if engine.dtype == torch.float32 else comparison.theirs(engine.dtype)
    note = "the engine runs in float32, so diffusers in its dtype is the reference itself" if same is reference else ""
    return {
        "steps": comparison.steps,
        "dtype": dtype,
        "reference": "diffusers in float32, DDIM, noise and embeddings given, image latents at the posterior's mean",
        "ours": against(comparison.ours(), reference),
        "diffusers": against(same, reference),
        "note": note,
    }
