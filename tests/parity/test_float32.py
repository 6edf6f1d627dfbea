"""Against diffusers' ConsisIDPipeline, opened from the same checkpoint, with the same generator, in float32 on a CPU.

The bounds are the contract's: latents within 1e-4 after the whole loop, frames within 1/255. What separates the two is
the order of float32 additions (folded face attention, split patch embedding), around 1e-6 a step.
"""

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, EulerDiscreteScheduler
from support.drawn import random_variant
from support.people import random_identity
from support.reference import LATENTS, assert_same, compare, reference_pipeline, run_reference

from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.variants import TINY
from consisid.export import build

pytestmark = [pytest.mark.order(-4), pytest.mark.slow]

PROMPT = "A person walks slowly through fresh snow."


@pytest.mark.parametrize("scheduler", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
def test_schedulers(tiny, tiny_reference, scheduler, monkeypatch):
    for owner in (tiny, tiny_reference):
        monkeypatch.setattr(owner, "scheduler", scheduler.from_config(tiny_reference.scheduler.config))
    compare(tiny, tiny_reference, random_identity(TINY), num_frames=17, guidance_scale=6.0, negative_prompt="blurred")


@pytest.mark.parametrize("scheduler", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
def test_schedulers_without_guidance(shallow, shallow_reference, scheduler, monkeypatch):
    for owner in (shallow, shallow_reference):
        monkeypatch.setattr(owner, "scheduler", scheduler.from_config(shallow_reference.scheduler.config))
    compare(shallow, shallow_reference, random_identity(TINY), guidance_scale=1.0, negative_prompt="blurred")


def test_a_scheduler_that_scales_noise_and_inputs(tiny_folder, tiny_checkpoint):
    """Both are 1 for the schedulers above. Euler's noise begins 14 times as large, and the network reads it divided."""
    engine, pipeline = ConsisID.open(tiny_folder), reference_pipeline(tiny_checkpoint)
    for owner in (engine, pipeline):
        owner.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    person, options = random_identity(TINY), {"num_inference_steps": 3, "num_frames": 9}
    reference, _ = run_reference(pipeline, person, PROMPT, decode=False, **options)
    found = engine.generate(person, PROMPT, seed=7, output_type="latent", **options).latents
    assert engine.scheduler.init_noise_sigma > 2
    assert (found - reference).abs().max() < LATENTS * reference.abs().max()


def test_dynamic_guidance(shallow, shallow_reference):
    compare(shallow, shallow_reference, random_identity(TINY), use_dynamic_cfg=True)


def test_reference_tiling(tiny, tiny_reference):
    """After diffusers' enable_tiling(): the image is encoded in tiles, and the frames are decoded in them."""
    identity, options = random_identity(TINY), {"num_inference_steps": 2, "num_frames": 9}
    whole = tiny.generate(identity, PROMPT, seed=7, output_type="latent", **options)
    tiny_reference.vae.enable_tiling(48, 80)
    try:
        latents, frames = run_reference(tiny_reference, identity, PROMPT, seed=7, **options)
    finally:
        tiny_reference.vae.disable_tiling()
    options |= {"seed": 7, "decode": "tiled-reference", "tile": (6, 10)}
    tiled = tiny.generate(identity, PROMPT, output_type="latent", **options)
    tiled.frames = tiny.generate(identity, PROMPT, **options).frames
    assert_same(tiled, (latents, frames))
    assert (whole.latents - tiled.latents).abs().max() > LATENTS  # there was something to get right


def test_sequential_guidance(shallow, shallow_reference):
    compare(shallow, shallow_reference, random_identity(TINY), ours={"cfg": "sequential"})


def test_given_embeddings_and_latents(shallow, shallow_reference):
    generator = torch.Generator().manual_seed(3)
    embeds, negative = torch.randn(2, 1, 32, 64, generator=generator).unbind(0)
    noise = torch.randn(1, 3, 16, 12, 18, generator=generator)
    options = {"prompt_embeds": embeds, "negative_prompt_embeds": negative, "latents": noise}
    compare(shallow, shallow_reference, random_identity(TINY), prompt=None, **options)


def test_callbacks_replace_latents_and_prompt_embeds(shallow, shallow_reference):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), sorted(tensors)))
        if step == 0:
            return {"latents": tensors["latents"] * 1.01, "prompt_embeds": tensors["prompt_embeds"].flip(1)}
        return tensors

    inputs = ["latents", "prompt_embeds"]
    compare(
        shallow, shallow_reference, random_identity(TINY),
        callback_on_step_end=callback, callback_on_step_end_tensor_inputs=inputs,
    )  # fmt: skip
    reference, ours = seen[:3], seen[3:6]
    assert ours == reference == [(i, t, inputs) for i, (_, t, _) in enumerate(reference)]


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(4, 10))])
def test_random_configurations(seed, tmp_path):
    variant = random_variant(seed)
    checkpoint = write_checkpoint(variant, tmp_path / "checkpoint", seed=seed)
    build(checkpoint, tmp_path / "engine", backend="eager")
    engine = ConsisID.open(tmp_path / "engine")
    frames = int(np.random.default_rng(seed).choice([9, 17]))
    options = {"num_inference_steps": 2, "num_frames": frames}
    if not variant.transformer.use_learned_positional_embeddings:
        options |= {"height": 80, "width": 64}
    compare(engine, reference_pipeline(checkpoint), random_identity(variant, seed), **options)


def test_several_prompts(tiny):
    """The reference breaks with two prompts and one identity; here each equals the video that is made alone."""
    identity, prompts = random_identity(TINY), [PROMPT, "A man in a dark coat."]
    make = [torch.Generator().manual_seed(s) for s in (1, 2)]
    both = tiny.generate(identity, prompts, generator=make, num_inference_steps=2, num_frames=9, output_type="latent")
    for seed, prompt, video in zip((1, 2), prompts, both, strict=True):
        alone = tiny.generate(identity, prompt, seed=seed, num_inference_steps=2, num_frames=9, output_type="latent")
        assert (alone.latents - video.latents).abs().max() < LATENTS
