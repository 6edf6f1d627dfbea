"""The error of our tiles and their seams are below those of diffusers' tiles, by the command that users run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.autoencoders import SMALL
from support.seams import main, measure, seam, smooth_latents

from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.decode import blended as tiling
from consisid.engine.variants import TINY
from consisid.export import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def narrow_folder(tmp_path_factory) -> Path:
    """A random decoder of two layers a block, a third of TINY's width, for frames of 96 x 160."""
    variant = replace(
        TINY, name="custom", height=96, width=160,
        transformer=replace(TINY.transformer, sample_height=12, sample_width=20),
        vae=replace(SMALL, sample_height=96, sample_width=160),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("narrow")
    build(write_checkpoint(variant, folder / "checkpoint"), folder / "engine", backend="eager")
    return folder / "engine"


@pytest.fixture(scope="module")
def narrow(narrow_folder) -> ConsisID:
    return ConsisID.open(narrow_folder)


@pytest.mark.parametrize(
    ("width", "tile"),
    [("tiny", (6, 10)), ("tiny", (12, 10)), ("narrow", (6, 15)), ("narrow", (6, 20)), ("narrow", (12, 10))],
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
def test_ours_is_better_than_the_reference(width, tile, seed, request):
    """Tiles that cut both ways, and one way only."""
    engine = request.getfixturevalue(width)
    latents = smooth_latents(3, 16, engine.shape.latent_height, engine.shape.latent_width, seed)
    rows = {row.mode: row for row in measure(engine, tile, latents)[0]}
    print(rows)
    reference, ours, exact = rows["tiled-reference"], rows["tiled"], rows["exact"]
    assert ours.mean < reference.mean
    assert ours.seam < reference.seam
    assert exact.largest < 1e-4 * reference.largest
    assert exact.seam < 1e-4 * reference.seam


def test_a_step_is_a_seam():
    whole = torch.rand(1, 20, 30, 3, generator=torch.Generator().manual_seed(0))  # neighbours differ by a third
    bands = [(8, 12)], [(10, 20)]
    assert seam(whole, whole, bands) == 0
    step, ramp = whole.clone(), whole.clone()
    step[:, :, 15:] += 1
    ramp += torch.linspace(0, 1, 30)[:, None]
    assert 2.5 < seam(step, whole, bands) < 3.5
    assert seam(ramp, whole, bands) < 0.2
    assert seam(step, whole, ([(8, 12)], [])) < 1e-6  # across the rows there is none


def test_tiles_put_side_by_side_have_a_worse_seam(shallow, monkeypatch):
    latents = smooth_latents(3, 16, shallow.shape.latent_height, shallow.shape.latent_width, seed=0)

    def found() -> float:
        return {row.mode: row.seam for row in measure(shallow, (6, 10), latents)[0]}["tiled"]

    blended, fade = found(), tiling._fade
    monkeypatch.setattr(tiling, "_fade", lambda *given: (fade(*given) > 0.5).float())
    assert found() > 1.5 * blended


def test_the_command(narrow_folder, tmp_path, capsys):
    picture = tmp_path / "seams.png"
    assert main([str(narrow_folder), "--picture", str(picture)]) == 0
    assert "| tiled |" in capsys.readouterr().out
    assert picture.stat().st_size > 1000
    assert main([str(narrow_folder), "--tile", "6", "9"]) == 2
    assert "multiples of 6 and 5" in capsys.readouterr().err
