"""ConsisID-1.5 on several devices, whose patches reach over time."""

import numpy as np
import pytest
from support.people import random_identity

from consisid.engine import ConsisID
from consisid.engine.variants import TINY_1_5
from consisid.export import build

pytestmark = pytest.mark.slow


def latents(engine):
    asked = {"num_inference_steps": 2, "seed": 3, "output_type": "latent"}
    return engine.generate(random_identity(engine.variant), "A.", **asked).latents


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("several") / "engine"
    build("tiny-1.5", found, backend="eager")
    return found


FULL = pytest.mark.full
MESHES = [
    pytest.param(3, None, id="ulysses"),
    pytest.param(2, None, id="guidance", marks=FULL),
    pytest.param(2, "ring=2", id="ring", marks=FULL),
    pytest.param(4, None, id="guidance and ring", marks=FULL),
    pytest.param(6, None, id="guidance and ulysses", marks=FULL),
    pytest.param(6, "ulysses=3,ring=2", id="ulysses and ring", marks=FULL),
]


@pytest.mark.parametrize(("devices", "mesh"), MESHES)
def test_1_5(devices, mesh, folder):
    one, several = ConsisID.open(folder), ConsisID.open(folder, devices=devices, mesh=mesh, timeout=120)
    try:
        assert one.variant == TINY_1_5
        assert (latents(several) - latents(one)).abs().max() <= 1e-4
        person = random_identity(one.variant)
        for options in ({}, {"decode": "exact", "tile": (5, 7)}, {"decode": "tiled", "tile": (6, 7)}):
            frames = [
                engine.generate(person, "A.", num_inference_steps=1, seed=3, num_frames=9, **options).frames
                for engine in (one, several)
            ]
            assert np.abs(frames[0].astype(int) - frames[1].astype(int)).max() <= 1
    finally:
        several.close()
