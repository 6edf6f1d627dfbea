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


@pytest.mark.parametrize(("devices", "mesh"), [pytest.param(3, None), pytest.param(4, None, marks=pytest.mark.full)])
def test_1_5(devices, mesh, tmp_path):
    folder = tmp_path / "engine"
    build("tiny-1.5", folder, backend="eager")
    one, several = ConsisID.open(folder), ConsisID.open(folder, devices=devices, mesh=mesh, timeout=120)
    try:
        assert one.variant == TINY_1_5
        assert (latents(several) - latents(one)).abs().max() <= 1e-4
        person = random_identity(one.variant)
        frames = [x.generate(person, "A.", num_inference_steps=1, seed=3).frames for x in (one, several)]
        assert np.abs(frames[0].astype(int) - frames[1].astype(int)).max() <= 1
    finally:
        several.close()
