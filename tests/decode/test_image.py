"""The posterior of an image, and latents that are drawn from it."""

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from consisid.engine.decode.image import sample_posterior


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
