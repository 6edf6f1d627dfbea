"""The posterior of an image, and latents that are drawn from it."""

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from consisid.engine.decode.image import first_frames, sample_posterior
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import TINY_1_5


def test_a_draw_is_that_of_diffusers_however_large_the_variance_is_said_to_be():
    """Its logarithm is held between -30 and 20; the numbers are those of an encoder, and what no encoder gives."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(1, 16, 1, 2, 3, generator=generator)
    log_variance = torch.linspace(-100, 100, mean.numel()).view(mean.shape)
    moments = torch.cat((mean, log_variance), dim=1)
    expected = DiagonalGaussianDistribution(moments).sample(torch.Generator().manual_seed(1))
    found = sample_posterior(moments, 2, torch.Generator().manual_seed(1))
    assert found.isfinite().all()
    assert torch.equal(found, expected.expand(2, -1, -1, -1, -1).transpose(1, 2))


def test_key_points_are_scaled_as_latents_where_the_photo_is_scaled_inversely():
    """As the authors' pipeline has it for 1.5. The posteriors are as narrow as they can be."""
    shape, vae = VideoShape.of(TINY_1_5, None, None, None), TINY_1_5.vae
    means = torch.ones(2, 1, 16, 1, shape.latent_height, shape.latent_width)
    moments = [torch.cat((mean, torch.full_like(mean, -100.0)), dim=1) for mean in means]
    found = first_frames([moments], [1], torch.Generator().manual_seed(0), shape, vae)
    assert vae.scaling_factor != 1
    assert (found[:, 0] - 1 / vae.scaling_factor).abs().max() < 1e-5
    assert (found[:, 1] - vae.scaling_factor).abs().max() < 1e-5
    assert not found[:, 2:].any()
