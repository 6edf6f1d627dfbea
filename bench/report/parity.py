"""How wrong the engine is, beside how wrong diffusers is in the same dtype: both against diffusers in float32.

Everything random is taken out: the noise is given, the scheduler is DDIM without noise of its own, and the image's
latents are the posterior's mean, since float32 and bfloat16 draw other numbers from one seed.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.linalg import norm
from torch import Tensor

from consisid.engine import ConsisID
from consisid.engine.errors import ConsisIDError

from ..core.baselines import EAGER, answering, arguments, open_pipeline
from ..core.inputs import GUIDANCE, PROMPT, identity

CERTAIN = -30.0  # a log variance at which nothing is left to draw
STEPS = 4
ENOUGH, MOST = 10_000, 3  # latents to compare in a lower precision, and videos at most
FACTOR = 1.1  # of diffusers' own error in the same dtype
EXACT = 1e-4  # largest error of latents in float32, where diffusers is the reference itself
Made = tuple[list[Tensor], np.ndarray]
"""Latents after each step, float32 on the CPU, and frames [F, H, W, 3] in [0, 1]."""


class ParityError(ConsisIDError):
    """The engine is further from the reference than the rule allows."""


def psnr(got: np.ndarray, right: np.ndarray, span: float = 1.0) -> float | None:
    """Decibels of values that span so much: of frames 1; None where they are identical, which has no number."""
    error = float(np.mean((got.astype(np.float64) - right) ** 2))
    return None if error == 0 else 20 * math.log10(span) - 10 * math.log10(error)


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


class Comparison:
    """Videos of given noise and embeddings by everyone, one for each seed."""

    def __init__(self, engine: ConsisID, steps: int, seeds: Sequence[int]):
        from diffusers import CogVideoXDDIMScheduler

        self.engine, self.steps, v, s = engine, min(steps, STEPS), engine.variant, engine.shape
        self.person, self.ddim = identity(v), CogVideoXDDIMScheduler.from_config(engine.scheduler.config)
        size = (1, s.loop_frames, v.vae.latent_channels, s.latent_height, s.latent_width)
        self.noises = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        with torch.no_grad():
            both = engine.text_encoder(engine.networks(), ["", PROMPT])
        self.negative, self.prompt = both.chunk(2)

    @torch.no_grad()
    def theirs(self, dtype: torch.dtype) -> list[Made]:
        """What diffusers makes in a dtype."""
        engine, made = self.engine, list[Made]()
        pipeline = open_pipeline(engine, dtype)
        prompt, negative = (x.to(engine.device, dtype) for x in (self.prompt, self.negative))
        with answering():
            pipeline.scheduler = self.ddim
            pipeline.text_encoder = None  # the embeddings are given: its memory is not needed
            EAGER.prepare(pipeline, engine.device)
            pipeline.vae.encoder.register_forward_hook(certain)
            for noise in self.noises:
                kept = list[Tensor]()
                given = arguments(
                    engine, self.person, self.steps, 0, latents=noise.to(engine.device, dtype), prompt_embeds=prompt,
                    negative_prompt_embeds=negative, callback_on_step_end=keeping(kept),
                )  # fmt: skip
                video = pipeline.decode_latents(pipeline(**given).frames)
                made.append((kept, pipeline.video_processor.postprocess_video(video=video, output_type="np")[0]))
        return made

    @torch.no_grad()
    def ours(self) -> list[Made]:
        """What the engine makes."""
        engine, person, networks, made = self.engine, self.person, self.engine.networks(), list[Made]()
        size = engine.shape.height, engine.shape.width
        moments, _ = certain(None, None, (engine.conditioner.images(networks, person, *size)[0], None))
        engine.conditioner.known(networks, person).moments[*size, None] = [moments.cpu()]
        with scheduler(engine, self.ddim):
            for noise in self.noises:
                kept = list[Tensor]()
                video = engine.generate(
                    person, prompt_embeds=self.prompt, negative_prompt_embeds=self.negative, latents=noise, seed=0,
                    num_inference_steps=self.steps, guidance_scale=GUIDANCE, callback_on_step_end=keeping(kept),
                    output_type="np",
                )  # fmt: skip
                made.append((kept, video.frames))
        return made


def keeping(kept: list[Tensor]) -> Any:
    """A callback after each step that keeps the latents."""

    def keep(_: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kept.append(tensors["latents"].float().cpu())
        return {}

    return keep


def against(got: list[Made], right: list[Made]) -> dict[str, Any]:
    """Errors over all videos: of the latents after each step the largest, the root mean square of those relative to the
    norm, and PSNR; of the frames PSNR and the largest."""
    count = range(len(got[0][0]))
    steps = [[np.stack([latents[i].numpy() for latents, _ in made]) for made in (got, right)] for i in count]
    ours, theirs = (np.stack([video for _, video in made]) for made in (got, right))
    return {
        "max_error_per_step": [float(np.abs(a - b).max()) for a, b in steps],
        "relative_error_per_step": [
            math.sqrt(statistics.fmean((norm(x - y) / norm(y)) ** 2 for x, y in zip(a, b, strict=True)))
            for a, b in steps
        ],
        "psnr_per_step_db": [psnr(a, b, float(np.ptp(b))) for a, b in steps],
        "frames_psnr_db": psnr(ours, theirs),
        "frames_max_error": float(np.abs(ours - theirs).max()),
    }


def verdict(ours: dict[str, Any], theirs: dict[str, Any], exact: bool) -> dict[str, Any]:
    """Whether the engine is as near to the reference as it has to be, and the rule in words."""
    if exact:
        rule = f"latents of the last step within {EXACT:g} of diffusers' in float32"
        found, allowed = ours["max_error_per_step"][-1], EXACT
    else:
        rule = f"relative error after the last step at most {FACTOR} times diffusers' own in the same dtype"
        found, allowed = ours["relative_error_per_step"][-1], FACTOR * theirs["relative_error_per_step"][-1]
    return {"rule": rule, "found": found, "allowed": allowed, "holds": found <= allowed}


def check(compared: dict[str, Any] | None) -> None:
    """Raises ParityError where a parity section of a report does not hold."""
    if compared is not None and not compared["verdict"]["holds"]:
        v = compared["verdict"]
        raise ParityError(
            f"The engine's error is {v['found']:.2e}, more than {v['allowed']:.2e} ({v['rule']}); the report says "
            "after which step. Do not use its times."
        )


def measure(engine: ConsisID, steps: int) -> dict[str, Any]:
    """The section of the report. The float32 reference is made first and let go before the next."""
    exact, s = engine.dtype == torch.float32, engine.shape
    # In a lower precision as many videos as it takes for the rule to mean something: the error of one small video
    # scatters with its noise by more than the tenth that the rule allows. Full size has millions of latents.
    latents = s.loop_frames * engine.variant.vae.latent_channels * s.latent_height * s.latent_width
    videos = 1 if exact else max(1, min(MOST, -(-ENOUGH // latents)))
    comparison = Comparison(engine, steps, range(1, 1 + videos))
    reference = comparison.theirs(torch.float32)
    same = reference if exact else comparison.theirs(engine.dtype)
    ours, theirs = against(comparison.ours(), reference), against(same, reference)
    note = "the engine runs in float32, so diffusers in its dtype is the reference itself" if exact else ""
    return {
        "steps": comparison.steps,
        "videos": videos,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "reference": "diffusers in float32, DDIM, noise and embeddings given, image latents at the posterior's mean",
        "ours": ours,
        "diffusers": theirs,
        "verdict": verdict(ours, theirs, exact),
        "note": note,
    }
