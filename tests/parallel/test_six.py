"""Six processes, which share guidance, tokens and rows: the shortest of what test_parity.py does with others."""

import numpy as np
import pytest
from support.people import random_identity

from consisid.engine import ConsisID

pytestmark = pytest.mark.slow


def test_a_video_by_six_processes(shallow, shallow_folder):
    person, options = random_identity(shallow.variant), {"num_inference_steps": 1, "seed": 3, "num_frames": 9}
    several = ConsisID.open(shallow_folder, devices=6, timeout=120)
    try:
        assert str(several.mesh) == "cfg=2,ulysses=3"
        found, expected = (
            engine.generate(person, "A.", output_type="latent", **options).latents for engine in (several, shallow)
        )
        assert (found - expected).abs().max() <= 1e-4
        found, expected = (engine.generate(person, "A.", **options).frames for engine in (several, shallow))
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    finally:
        several.close()
