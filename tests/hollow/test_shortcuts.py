"""A loop that leaves steps out, as the device sees it: it waits for nothing, keeps to its plan, and launches less."""

import pytest
import torch
from hollow.calls import Kind

from consisid.engine import ConsisID

from .conftest import OPTIONS, PROMPT, record_steps

STEPS = 6
SKIPPED = (2, 4)
SHORTCUTS = {"cache": 0.1, "guidance_window": (0, 5)}


@pytest.fixture(autouse=True)
def skipping(monkeypatch):
    """These steps are without their trunk, whatever the time embedding of random weights says."""
    monkeypatch.setattr(
        "consisid.engine.shortcuts.computed_steps", lambda changes, _: [i not in SKIPPED for i in range(STEPS)]
    )


@pytest.fixture
def options(loaded):
    generator = torch.Generator("cuda").manual_seed(5)  # on the device: its noise needs no copy
    return {"num_inference_steps": STEPS, "generator": generator, "seed": None, "shortcuts": SHORTCUTS}


@pytest.mark.parametrize("cfg", ["batched", "sequential"])
@pytest.mark.parametrize("memory", [None, "4GiB"])
def test_the_host_waits_for_nothing_in_the_loop(hollow, folder, person, options, memory, cfg):
    engine = ConsisID.open(folder, device="cuda", memory=memory)
    engine.generate(person, PROMPT, **{**OPTIONS, **options, "cfg": cfg})
    steps = record_steps(hollow, engine, person, **options, cfg=cfg)
    launched = [step.counts[Kind.KERNEL] for step in steps.calls]
    # Without a plan memory is the allocator's own: PyTorch 2.14 asks once for a small segment. Nothing waits for that.
    asked = {Kind.MALLOC} if memory is None else set()
    for step in steps.calls[1:]:
        assert [call for call in step.calls if call.waits and call.kind not in asked] == []
    assert max(launched[i] for i in SKIPPED) + 20 < min(launched[i] for i in (1, 3))


def test_weights_that_stream_come_in_computed_steps_only(hollow, wide_folder, person, options):
    engine = ConsisID.open(wide_folder, device="cuda", memory="1GiB")
    engine.generate(person, PROMPT, **{**OPTIONS, **options, "cfg": "batched"})
    steps = record_steps(hollow, engine, person, **options, cfg="batched")
    copies = [len(step.of(Kind.TO_DEVICE)) for step in steps.calls]
    # Those of a step are issued ahead, while the one before is computed or left out.
    assert sum(copies[1:]) <= 8 * (STEPS - len(SKIPPED))
    for step in steps.calls[1:]:
        assert [call for call in step.calls if call.waits] == []


@pytest.mark.parametrize("memory", ["1GiB", "4GiB"])
def test_what_is_kept_is_part_of_the_plan(hollow, wide_folder, person, options, memory):
    engine = ConsisID.open(wide_folder, device="cuda", memory=memory)
    stats = engine.generate(person, PROMPT, **{**OPTIONS, **options}).stats
    assert stats.predicted_bytes is not None
    assert stats.peak_bytes <= stats.predicted_bytes
    assert max(stats.stage_bytes.values(), default=0) <= stats.predicted_bytes


@pytest.mark.parametrize("cfg", ["batched", "sequential"])
@pytest.mark.parametrize("memory", ["1GiB", "4GiB"])
def test_the_first_block_decides_within_the_plan(hollow, wide_folder, person, options, memory, cfg):
    """In each step the host waits once at most: for what the step before has told, not for the device."""
    engine = ConsisID.open(wide_folder, device="cuda", memory=memory)
    given = {**options, "shortcuts": {"first_block": 0.1}, "cfg": cfg}
    stats = engine.generate(person, PROMPT, **{**OPTIONS, **given}).stats
    assert stats.predicted_bytes is not None
    assert stats.peak_bytes <= stats.predicted_bytes
    steps = record_steps(hollow, engine, person, **given)
    for step in steps.calls[1:]:
        assert {call.kind for call in step.calls if call.waits} <= {Kind.EVENT_SYNC}
        assert len([call for call in step.calls if call.waits]) <= 1
