"""diffusers' memory savers as plans: the rows of the reference's own table, by arithmetic; without a GPU no change."""

import logging

import pytest
import torch

from consisid.engine.memory.costs import video_costs
from consisid.engine.memory.planner import plan
from consisid.engine.memory.simulate import machine_named
from consisid.engine.pipeline.offload import Savers
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW

GB = 10**9
CUDA = torch.device("cuda", 0)
# https://huggingface.co/docs/diffusers/api/pipelines/consisid: reserved, each row with those above it.
ROWS = {
    "nothing": (Savers(), 44),
    "model offload": (Savers("model"), 25),
    "sequential offload": (Savers("sequential"), 22),
    "slicing": (Savers("sequential"), 22),
    "tiling": (Savers("sequential", tiling=True), 7),
}


SHAPE = VideoShape.of(PREVIEW, None, None, None)
GPU = "NVIDIA H100 80GB HBM3"


def costs():
    return video_costs(PREVIEW, SHAPE, torch.bfloat16, batch=1, steps=50, guided=True, device="cuda", rows=True)


@pytest.mark.parametrize("row", ROWS)
def test_each_row_takes_less_than_the_reference(row):
    savers, reserved = ROWS[row]
    budget = savers.budget(CUDA, GPU, costs)
    made = plan(budget, costs(), machine_named(GPU), tiling=savers.tiling)
    assert made.reserved < reserved * GB
    assert made.held == (row == "nothing")
    assert bool(made.stage("denoise").streamed) == (made.tile is not None) == (row == "tiling")
    if budget is not None:
        assert made.peak <= budget


def test_tiling_alone_takes_less_and_streams_nothing():
    budget = Savers(tiling=True).budget(CUDA, GPU, costs)
    made = plan(budget, costs(), machine_named(GPU), tiling=True)
    assert not made.stage("denoise").streamed
    assert made.peak < plan(None, costs(), machine_named(GPU)).peak


METHODS = {
    "model": lambda p: p.enable_model_cpu_offload(),
    "sequential": lambda p: p.enable_sequential_cpu_offload(),
    "group": lambda p: p.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1, offload_type="block_level"),
    "slicing": lambda p: p.vae.enable_slicing(),
    "tiling": lambda p: p.vae.enable_tiling(),
}


def test_without_a_gpu_they_change_nothing(ours, arguments, caplog):
    expected = ours(**arguments(output_type="pt")).frames
    with caplog.at_level(logging.INFO, "consisid"):
        for name, turn_on in METHODS.items():
            turn_on(ours)
            assert ours(**arguments(output_type="pt")).frames.equal(expected), name
    lines = [record.message for record in caplog.records if record.name == "consisid"]
    said = "offload: there is no GPU here, so nothing changes."
    assert lines == [f"{name} {said}" for name in ("model", "sequential", "group")]
    assert ours.explain_memory() == "group offload with tiled decode: there is no GPU here, so nothing changes."
    ours.vae.disable_tiling()
    ours.remove_all_hooks()
    assert ours.explain_memory().startswith("no memory saver: ")
