"""bf16 on a CPU: our error against a float32 run of the reference is at most 1.1 times diffusers' own bf16 error.

The rule is flash-attention's: an implementation is right when it is about as wrong as the plain one in the same dtype.
Everything random is taken out of the comparison: the noise is given, and the posterior's variance is (near) zero, since
bf16 and float32 draw other numbers from one seed.
"""

import pytest
import torch
from conftest import random_identity, reference_pipeline, run_reference
from diffusers import CogVideoXDDIMScheduler
from safetensors.torch import load_file, save_file
from test_parity import random_variant

from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.variants import TINY
from consisid.export import build

FACTOR = 1.1


def without_posterior_noise(checkpoint):
    file = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    half = weights["encoder.conv_out.conv.bias"].shape[0] // 2
    weights["encoder.conv_out.conv.weight"][half:] = 0
    weights["encoder.conv_out.conv.bias"][half:] = -30
    save_file(weights, file, metadata={"format": "pt"})
    return checkpoint


@pytest.mark.parametrize("seed", [None, 0, 2, 5])
def test_bf16_error_is_within_the_reference_own(seed, tmp_path):
    variant = TINY if seed is None else random_variant(seed)
    checkpoint = without_posterior_noise(write_checkpoint(variant, tmp_path / "checkpoint", seed=seed or 0))
    build(checkpoint, tmp_path / "engine", dtype="bfloat16", backend="eager")
    engine = ConsisID.open(tmp_path / "engine")
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
        pipeline.scheduler = CogVideoXDDIMScheduler.from_config(pipeline.scheduler.config)
        cast = {name: tensor.to(dtype) for name, tensor in options.items()}
        results[dtype] = run_reference(pipeline, person, seed=0, guidance_scale=2.0, decode=False, **cast)[0].float()
    engine.scheduler = pipeline.scheduler
    ours = engine.generate(
        person, seed=0, num_inference_steps=3, guidance_scale=2.0, output_type="latent", **options
    ).latents.float()  # fmt: skip
    truth = results[torch.float32]
    error, reference_error = ((x - truth).norm() / truth.norm() for x in (ours, results[torch.bfloat16]))
    print(f"ours {error:.2e}, diffusers {reference_error:.2e}, ratio {error / reference_error:.3f}")
    assert error <= FACTOR * reference_error
