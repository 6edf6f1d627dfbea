"""Two devices for one video, as the first sees them; what passes between them goes through the host here."""

from dataclasses import replace

import pytest
import torch
from hollow.calls import Kind

from consisid.engine import ConsisID
from consisid.engine.memory.simulate import MACHINES

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


@pytest.mark.parametrize("mesh", ["cfg=2", "ulysses=2"])
def test_weights_that_two_devices_keep_together(hollow, wide_folder, person, monkeypatch, mesh):
    """On a machine whose host is slow: each reads every block once, and gets half of it from the other
    in every step."""
    slow = replace(MACHINES["h100"], link=1e8)
    monkeypatch.setattr("consisid.engine.engine.machine_named", lambda gpu: slow)
    monkeypatch.setattr("consisid.engine.parallel.devices.OnDevices.holders", 2)  # although by gloo nothing is gained
    engine = ConsisID.open(wide_folder, mesh=mesh, memory="1240MiB", **DEVICES)
    try:
        stats = engine.generate(person, PROMPT, **{**OPTIONS, "num_frames": None}).stats
        assert stats.modes["memory"].endswith("from 2 devices")
        assert stats.peak_bytes <= stats.predicted_bytes
        assert stats.peak_bytes >= 0.5 * stats.predicted_bytes
        assert hollow.count(Kind.FAULT) == 0
    finally:
        engine.close()
