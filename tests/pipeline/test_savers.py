"""diffusers' memory savers as plans: the rows of the reference's own table, by arithmetic; without a GPU no change."""

import logging
import threading

import pytest
import torch

from consisid.engine.memory.costs import video_costs
from consisid.engine.memory.planner import plan
from consisid.engine.memory.simulate import machine_named
from consisid.engine.pipeline import pipeline as drop_in
from consisid.engine.pipeline.offload import Savers
from consisid.engine.run.run import Run
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
    lines = [record.message for record in caplog.records if "offload" in record.message]
    said = "offload: there is no GPU here, so nothing changes."
    assert lines == [f"{name} {said}" for name in ("model", "sequential", "group")]
    assert ours.explain_memory() == "group offload with tiled decode: there is no GPU here, so nothing changes."
    ours.vae.disable_tiling()
    ours.remove_all_hooks()
    assert ours.explain_memory().startswith("no memory saver: ")


BUDGETS = {9: 2**30, 17: 2**31}  # by frames


def test_calls_from_threads_keep_to_their_own_budgets(ours, arguments, monkeypatch):
    """A saver's budget is of the video that is made; that of a call which waits for its turn changes no other's."""
    both, runs = threading.Barrier(2), []

    class Waiting(Run):
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            runs.append(self)
            both.wait(timeout=60)

    ours.enable_model_cpu_offload()
    before = ours.engine_for(16).memory
    monkeypatch.setattr(ours, "_budget", lambda engine, shape, *_: BUDGETS[shape.num_frames])
    monkeypatch.setattr(drop_in, "Run", Waiting)
    calls = [threading.Thread(target=lambda n=n: ours(**arguments(num_frames=n))) for n in BUDGETS]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert {run.request.shape.num_frames: run.plan.budget for run in runs} == BUDGETS
    assert ours.engine_for(16).memory == before
