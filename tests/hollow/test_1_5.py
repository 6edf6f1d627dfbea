"""ConsisID-1.5 on "cuda", by its small model: what it has otherwise than the preview."""

import pytest
import torch
from hollow.calls import Kind

from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.variants import TINY_1_5

from .conftest import OPTIONS, PROMPT, build_once, record_steps


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    checkpoint = write_checkpoint(TINY_1_5, tmp_path_factory.mktemp("checkpoints") / "tiny-1.5")
    return build_once(tmp_path_factory, checkpoint, backend="eager")


def test_a_video_within_a_budget(folder, person):
    """At full size: bench/reports/hollow.md."""
    torch.cuda.empty_cache()
    engine = ConsisID.open(folder, device="cuda", memory="980MiB")
    video = engine.generate(person, PROMPT, **{**OPTIONS, "output_type": "uint8"})
    assert video.frames.shape == (9, 96, 144, 3)
    assert video.stats.streamed_bytes > 0
    assert 0 < video.stats.peak_bytes <= video.stats.predicted_bytes


def test_a_step_launches_what_the_previews_does(hollow, folder, engine, person):
    """Patches over time and the ofs embedding are views and hoisted tables: the loop has no launch more."""
    counts = []
    for each in (engine, ConsisID.open(folder, device="cuda")):
        each.generate(person, PROMPT, **OPTIONS)
        steps = record_steps(hollow, each, person, num_inference_steps=5)
        counts.append({(step.counts[Kind.KERNEL], step.counts[Kind.LIBRARY]) for step in steps.calls[2:-1]})
    assert counts[0] == counts[1]


def test_padding_comes_back_with_the_latents(folder, person):
    engine = ConsisID.open(folder, device="cuda")
    assert engine.generate(person, PROMPT, **OPTIONS).latents.shape == (4, 16, 12, 18)
