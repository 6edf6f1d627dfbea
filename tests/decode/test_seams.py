"""The error of our tiles and their seams are below those of diffusers' tiles, by the command that users run."""

import pytest
import torch

from consisid.bench.seams import main, measure, seam, smooth_latents


@pytest.mark.parametrize("seed", [0, 1])
def test_ours_is_better_than_the_reference(tiny, seed):
    shape = tiny.shape
    latents = smooth_latents(5, 16, shape.latent_height, shape.latent_width, seed)
    rows = {row.mode: row for row in measure(tiny, (6, 10), latents)[0]}
    print(rows)
    reference, ours, exact = rows["tiled-reference"], rows["tiled"], rows["exact"]
    assert ours.mean < reference.mean
    assert ours.seam < reference.seam
    assert exact.largest < 1e-4 * reference.largest


def test_a_step_is_a_seam():
    flat = torch.rand(1, 20, 30, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    lines = ([10], [15])
    assert 0.7 < seam(flat, lines) < 1.3
    flat[:, :, 15:] += 1
    assert seam(flat, lines) > 3


def test_the_command(tiny_folder, tmp_path, capsys):
    picture = tmp_path / "seams.png"
    assert main([str(tiny_folder), "--picture", str(picture)]) == 0
    assert "| tiled |" in capsys.readouterr().out
    assert picture.stat().st_size > 1000
    assert main([str(tiny_folder), "--tile", "6", "9"]) == 2
    assert "multiples of 6 and 5" in capsys.readouterr().err
