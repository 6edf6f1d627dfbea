"""Two devices for one video, as the first sees them; what passes between them goes through the host here."""

import pytest
import torch
from hollow.calls import Kind

from consisid.engine import ConsisID

from .conftest import OPTIONS, PROMPT

DEVICES = {"devices": ["cuda:0", "cuda:1"], "transport": "gloo", "timeout": 120}


@pytest.fixture(scope="module", autouse=True)
def two(loaded):
    if torch.cuda.device_count() < 2:
        pytest.skip("the hollow device is a single one; HOLLOW_DEVICES=2 makes two")


@pytest.mark.parametrize("mesh", ["cfg=2", "ulysses=2", "ring=2"])
@pytest.mark.parametrize("memory", [None, "1GiB"])
def test_two_devices_keep_to_their_plan(hollow, wide_folder, person, mesh, memory):
    engine = ConsisID.open(wide_folder, mesh=mesh, memory=memory, **DEVICES)
    try:
        for output in ("latent", "uint8"):
            stats = engine.generate(person, PROMPT, **{**OPTIONS, "output_type": output}).stats
            assert hollow.count(Kind.FAULT) == 0
            if memory is not None:
                assert stats.peak_bytes <= stats.predicted_bytes
                assert stats.peak_bytes >= 0.5 * stats.predicted_bytes
    finally:
        engine.close()
