"""The tensor functions around the EVA tower."""

import numpy as np
import torch
from PIL import Image

from consisid.engine.face.preprocess import CLIP_MEAN, CLIP_STD, eva_input, id_cond, resize, to_grey


def test_grey_has_the_weights_of_rec_601():
    image = torch.zeros(1, 3, 2, 2)
    image[:, 1] = 1.0
    grey = to_grey(image)
    assert grey.shape == (1, 3, 2, 2)
    torch.testing.assert_close(grey, torch.full((1, 3, 2, 2), 0.587))


def test_resize_is_bicubic_with_antialiasing():
    """Pillow's bicubic is the kernel that torchvision follows: a = -0.5, widened when shrinking."""
    pixels = np.random.default_rng(0).random((512, 512), dtype=np.float32)
    expected = np.asarray(Image.fromarray(pixels).resize((336, 336), Image.Resampling.BICUBIC))
    ours = resize(torch.from_numpy(pixels)[None, None], 336)[0, 0].numpy()
    # Pillow computes the kernel's weights in float64, PyTorch in float32 from positions up to 512: about 3e-5 of a tap.
    np.testing.assert_allclose(ours, expected, atol=5e-5)


def test_overshoot_is_kept():
    step = torch.zeros(1, 1, 512, 512)
    step[..., 256:] = 1.0
    assert resize(step, 336).min() < -0.005


def test_eva_input_is_normalised():
    grey = eva_input(torch.full((1, 3, 512, 512), 0.5))
    assert grey.shape == (1, 3, 336, 336)
    expected = (0.5 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(grey[0, :, 100, 100], expected)


def test_id_cond_normalises_the_tower_only():
    arcface, embedding = torch.full((1, 512), 3.0), torch.randn(1, 768) * 10
    result = id_cond(arcface, embedding)
    assert result.shape == (1, 1280)
    torch.testing.assert_close(result[:, :512], arcface)
    torch.testing.assert_close(result[:, 512:].norm(), torch.tensor(1.0))
