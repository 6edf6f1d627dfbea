"""diffusers' own pipeline, and the comparison of whole loops with it."""

from pathlib import Path

import numpy as np
import torch

from consisid.engine import Identity
from consisid.engine.decode.frames import finish
from consisid.engine.shapes import VideoShape

PROMPT = "A person walks slowly through fresh snow."
LATENTS, FRAMES = 1e-4, 1 / 255  # the contract's bounds


def reference_pipeline(checkpoint: Path, dtype: torch.dtype = torch.float32):
    """diffusers' own pipeline, opened from the same folder."""
    from diffusers import ConsisIDPipeline

    pipeline = ConsisIDPipeline.from_pretrained(checkpoint, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_reference(pipeline, identity: Identity, prompt=None, *, seed: int | None = 7, decode: bool = True, **options):
    """Latents and frames (float [F, H, W, 3] in [0, 1]) of diffusers' pipeline for our arguments."""
    config = pipeline.transformer.config
    options = {"num_inference_steps": 3, **options}
    ratio = pipeline.vae_scale_factor_spatial
    options.setdefault("height", config.sample_height * ratio)
    options.setdefault("width", config.sample_width * ratio)
    options.setdefault("num_frames", config.sample_frames)
    latents = pipeline(
        image=identity.image,
        prompt=prompt,
        id_cond=identity.id_cond,
        id_vit_hidden=list(identity.id_vit_hidden),
        generator=None if seed is None else torch.Generator().manual_seed(seed),
        max_sequence_length=config.max_text_seq_length,
        output_type="latent",
        **options,
    ).frames
    if not decode:
        return latents[0], None
    with torch.no_grad():
        video = pipeline.decode_latents(latents)
    frames = pipeline.video_processor.postprocess_video(video=video, output_type="np")
    return latents[0], frames[0]


def assert_same(ours, reference) -> None:
    latents, frames = reference
    assert ours.latents.shape == latents.shape
    print(f"latents {(ours.latents - latents).abs().max():.1e}")
    assert (ours.latents - latents).abs().max() < LATENTS
    assert np.abs(ours.frames.astype(np.float32) / 255 - frames).max() <= FRAMES


def compare(engine, pipeline, identity, prompt=PROMPT, *, seed=7, ours=None, **options):
    """Both whole loops, latents and decoded frames; 9 of them where nothing else is asked for."""
    options = {"num_frames": 9, **options}
    reference = run_reference(pipeline, identity, prompt, seed=seed, **options)
    options = {"num_inference_steps": 3, **options, **(ours or {})}
    result = engine.generate(identity, prompt, seed=seed, output_type="latent", **options)
    shape = VideoShape.of(engine.variant, *(options.get(name) for name in ("height", "width", "num_frames")))
    with torch.no_grad():
        latents = result.latents[None] / engine.variant.vae.scaling_factor
        result.frames = finish(engine.networks(shape), latents, "uint8")[0]
    assert_same(result, reference)
