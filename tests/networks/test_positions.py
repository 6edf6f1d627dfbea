"""Rotary tables against diffusers', where the grid of a video is not the one that the model was trained at."""

import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.consisid.pipeline_consisid import get_resize_crop_region_for_grid
from support.engines import ANY_SIZE

from consisid.engine.networks.positions import rotary_tables
from consisid.engine.shapes import VideoShape

# The trained one, one that is as wide, one that is as high, and a square.
SIZES = [(96, 144), (48, 144), (96, 64), (144, 144)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_grid_is_fitted_into_the_trained_one_and_centred(height, width):
    config, shape = ANY_SIZE.transformer, VideoShape.of(ANY_SIZE, height, width, 17)
    grid = (shape.rows, shape.columns)
    region = get_resize_crop_region_for_grid(
        grid, config.sample_width // config.patch_size, config.sample_height // config.patch_size
    )
    theirs = get_3d_rotary_pos_embed(
        config.attention_head_dim, region, grid, shape.depth, device=torch.device("cpu")
    )  # each number twice, for both channels of a pair
    for ours, right in zip(rotary_tables(config, shape), theirs, strict=True):
        assert (ours - right[:, ::2]).abs().max() < 1e-6
