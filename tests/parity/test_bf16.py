"""bf16 on a CPU: our error against a float32 run of the reference is at most 1.1 times diffusers' own bf16 error.

The rule is flash-attention's: an implementation is right when it is about as wrong as the plain one in the same dtype.
Everything random is taken out of the comparison: the noise is given, and the posterior's variance is (near) zero, since
bf16 and float32 draw other numbers from one seed.
"""

from dataclasses import replace

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from support.autoencoders import without_posterior_noise
from support.drawn import random_variant
from support.engines import ALL_FUSED, SHALLOW, build_in_part
from support.loras import lora
from support.people import random_identity
from support.reference import reference_pipeline, run_reference

from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.variants import TINY
from consisid.export import build

pytestmark = pytest.mark.slow

FACTOR = 1.1


# One chunk of frames, which decode_first decodes.
NINE = replace(TINY, name="custom", num_frames=9, transformer=replace(TINY.transformer, sample_frames=9))
SHORT = replace(NINE, vae=SHALLOW.vae)


@pytest.mark.full
def test_compiled_bf16_error_is_within_the_reference_own(tmp_path):
    """SHORT with all graphs compiled by AOTInductor in which it makes one loop of several operators."""
    checkpoint = without_posterior_noise(write_checkpoint(SHORT, tmp_path / "checkpoint"))
    build_in_part(checkpoint, tmp_path / "engine", ALL_FUSED.__contains__, dtype="bfloat16")
    engine = ConsisID.open(tmp_path / "engine")
    assert {name for name, entry in engine.manifest.graphs.items() if entry.backend == "inductor"} == ALL_FUSED
    compare(engine, checkpoint)
    assert {name for name in ALL_FUSED if engine.networks().calls[name]} == ALL_FUSED


@pytest.mark.parametrize("seed", [None, 0, 2, 5])
def test_bf16_error_is_within_the_reference_own(seed, tmp_path):
    variant = NINE if seed is None else random_variant(seed)
    checkpoint = without_posterior_noise(write_checkpoint(variant, tmp_path / "checkpoint", seed=seed or 0))
    build(checkpoint, tmp_path / "engine", dtype="bfloat16", backend="eager")
    compare(ConsisID.open(tmp_path / "engine"), checkpoint)


def test_bf16_error_with_a_lora(tmp_path):
    """Ours rounds the sum of weight and LoRA once; diffusers rounds what each of them gives."""
    checkpoint = without_posterior_noise(write_checkpoint(SHORT, tmp_path / "checkpoint"))
    build(checkpoint, tmp_path / "engine", dtype="bfloat16", backend="eager")
    engine = ConsisID.open(tmp_path / "engine")
    state = lora(engine.checkpoint)
    engine.load_lora_weights(state)
    compare(engine, checkpoint, state)


def compare(engine, checkpoint, state=None):
    """The latents of a whole loop, and the frames decoded from them."""
    variant = engine.variant
    person = random_identity(variant)
    generator = torch.Generator().manual_seed(1)
    transformer, frames = variant.transformer, (variant.transformer.sample_frames - 1) // 4 + 1
    size = (1, frames, 16, transformer.sample_height, transformer.sample_width)
    length, width = transformer.max_text_seq_length, transformer.text_embed_dim
    options = {
        "latents": torch.randn(size, generator=generator),
        "prompt_embeds": torch.randn(1, length, width, generator=generator),
        "negative_prompt_embeds": torch.randn(1, length, width, generator=generator),
    }
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = reference_pipeline(checkpoint, dtype)
        if state is not None:
            pipeline.load_lora_weights(state)
        pipeline.scheduler = CogVideoXDDIMScheduler.from_config(pipeline.scheduler.config)
        cast = {name: tensor.to(dtype) for name, tensor in options.items()}
        latents, pixels = run_reference(pipeline, person, seed=0, guidance_scale=2.0, **cast)
        results[dtype] = latents.float(), torch.from_numpy(pixels)
    engine.scheduler = pipeline.scheduler
    sampling = {"seed": 0, "num_inference_steps": 3, "guidance_scale": 2.0, **options}
    ours = (
        engine.generate(person, output_type="latent", **sampling).latents.float(),
        torch.from_numpy(engine.generate(person, output_type="np", **sampling).frames),
    )
    for kind, got, theirs, truth in zip(("latents", "frames"), ours, *reversed(results.values()), strict=True):
        error, reference_error = ((x - truth).norm() / truth.norm() for x in (got, theirs))
        print(f"{kind}: ours {error:.2e}, diffusers {reference_error:.2e}, ratio {error / reference_error:.3f}")
        assert error <= FACTOR * reference_error, kind
