"""The autoencoder against diffusers' AutoencoderKLCogVideoX on random configurations, in float32 on a CPU."""

from collections import Counter

import pytest
import torch
from support.autoencoders import diffusers_vae, random_config, same_weights
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from consisid.engine.networks.vae_decoder import Encoder, FirstChunk, NextChunk, live_caches
from consisid.engine.variants import PREVIEW, TINY

pytestmark = pytest.mark.slow

# Only the order of additions separates the two: weights that are summed before they are applied.
BOUND = 1e-5


def close(ours, reference) -> None:
    error = ((ours - reference).abs().max() / reference.abs().max().clamp(min=1)).item()
    assert ours.shape == reference.shape
    assert error < BOUND, error


CONFIGS = [pytest.param(TINY.vae, id="tiny"), *(pytest.param(random_config(s), id=f"random{s}") for s in range(4))]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("latent_frames", [1, 4, 5])
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


class Kernels(TorchDispatchMode):
    """The numbers of dimensions of the kernels that are convolved with while it is active."""

    def __init__(self):
        super().__init__()
        self.ranks = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.ranks[args[1].ndim - 2] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "rank"), [("meta", 3), ("cpu", 2)])
def test_convolutions_are_taken_apart_on_a_cpu_alone(device, rank):
    """Graphs that a library of another device takes are traced on the meta device."""
    with torch.device(device), torch.no_grad(), Kernels() as kernels:
        decoder = FirstChunk(TINY.vae)
        decoder(torch.empty(1, 16, 3, 6, 8))
    assert set(kernels.ranks) == {rank}
    assert kernels.ranks[rank] >= sum(isinstance(module, nn.Conv3d) for module in decoder.modules())


def test_the_live_caches_of_the_preview():
    """38 of the 112 tensors that diffusers keeps at 3 layers a block."""
    with torch.device("meta"):
        decoder = FirstChunk(PREVIEW.vae).decoder
    names = live_caches(decoder)
    assert len(names) == 38
    assert (names[0], names[1], names[-1]) == ("conv_in", "mid_block.resnets.0.conv1", "conv_out")
