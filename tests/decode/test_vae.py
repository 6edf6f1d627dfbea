"""The autoencoder against diffusers' AutoencoderKLCogVideoX on random configurations, in float32 on a CPU."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from consisid.engine.networks.vae import Encoder, FirstChunk, NextChunk, live_caches
from consisid.engine.random_checkpoint import _randomise
from consisid.engine.variants import PREVIEW, TINY, VaeConfig

# Only the order of additions separates the two: weights that are summed before they are applied.
BOUND = 1e-5


def random_config(seed: int) -> VaeConfig:
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([2, 4]))
    return VaeConfig(
        block_out_channels=tuple(groups * int(n) for n in rng.integers(1, 6, int(rng.integers(3, 5)))),
        layers_per_block=2 + seed % 2,
        latent_channels=int(rng.choice([4, 16])),
        norm_num_groups=groups,
        norm_eps=1e-6,
    )


def diffusers_vae(config: VaeConfig, seed: int = 0):
    from diffusers import AutoencoderKLCogVideoX

    blocks = len(config.block_out_channels)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * blocks,
        up_block_types=("CogVideoXUpBlock3D",) * blocks,
        **asdict(config),
    )
    _randomise(vae, seed)
    return vae.eval().requires_grad_(False)


def same_weights(module, vae):
    part = next(iter(dict(module.named_children())))
    weights = {name: tensor for name, tensor in vae.state_dict().items() if name.startswith(part + ".")}
    module.load_state_dict(weights)  # every name and shape
    return module.eval().requires_grad_(False)


def close(ours, reference) -> None:
    error = ((ours - reference).abs().max() / reference.abs().max().clamp(min=1)).item()
    assert ours.shape == reference.shape
    assert error < BOUND, error


CONFIGS = [pytest.param(TINY.vae, id="tiny"), *(pytest.param(random_config(s), id=f"random{s}") for s in range(6))]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("latent_frames", [1, 2, 3, 4, 5])
def test_the_decoder_is_diffusers(config, latent_frames):
    vae = diffusers_vae(config)
    first, later = (same_weights(kind(config), vae) for kind in (FirstChunk, NextChunk))
    latents = torch.randn(1, config.latent_channels, latent_frames, 5, 6, generator=torch.Generator().manual_seed(1))
    start = latent_frames if latent_frames < 2 else 2 + latent_frames % 2
    frames, *caches = first(latents[:, :, :start])
    parts = [frames]
    for i in range(start, latent_frames, 2):
        frames, *caches = later(latents[:, :, i : i + 2], *caches)
        parts.append(frames)
    close(torch.cat(parts, dim=2), vae.decode(latents).sample)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_encoder_is_diffusers(config):
    vae = diffusers_vae(config)
    encoder = same_weights(Encoder(config), vae)
    image = torch.rand(2, 3, 1, 48, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    close(encoder(image), vae.encode(image).latent_dist.parameters)


def test_the_live_caches_of_the_preview():
    """38 of the 112 tensors that diffusers keeps at 3 layers a block."""
    with torch.device("meta"):
        decoder = FirstChunk(PREVIEW.vae).decoder
    names = live_caches(decoder)
    assert len(names) == 38
    assert (names[0], names[1], names[-1]) == ("conv_in", "mid_block.resnets.0.conv1", "conv_out")
