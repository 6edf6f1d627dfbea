"""Runs that are killed go on with the same bytes; running out of memory is named, and can be survived."""

import signal

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DPMSolverMultistepScheduler
from support.forked import run_forked
from support.people import random_identity
from support.residency import OPTIONS, PERSON, PROMPT, SHAPE, SIZE, Killed, latents

from consisid.engine.errors import DeviceMemoryError, InputError, NumericalError
from consisid.engine.memory.device import DeviceMemory, explain
from consisid.engine.memory.plans import MemoryPlan, StagePlan
from consisid.engine.memory.simulate import UNKNOWN
from consisid.engine.run.options import Options
from consisid.engine.run.run import Run
from consisid.engine.variants import TINY

pytestmark = [pytest.mark.order(-5), pytest.mark.slow]

STEPS = 4
GIB = 2**30


def killed_at(engine, step, path, **options):
    def callback(owner, index, timestep, tensors):
        if index == step:
            raise Killed
        return {}

    with pytest.raises(Killed):
        latents(
            engine, num_inference_steps=STEPS, checkpoint=path, checkpoint_every=1, callback_on_step_end=callback,
            **options,
        )  # fmt: skip


@pytest.mark.parametrize("scheduler", [None, CogVideoXDDIMScheduler, DPMSolverMultistepScheduler])
def test_killed_at_any_step_and_resumed(engine, tmp_path, scheduler):
    """The checkpoint's own scheduler draws noise in each step and keeps a prediction; the last keeps a list."""
    if scheduler is not None:
        engine.scheduler = scheduler.from_config(engine.scheduler.config)
    whole = latents(engine, num_inference_steps=STEPS)
    path = tmp_path / "run.safetensors"
    for step in range(STEPS):
        killed_at(engine, step, path)
        assert path.exists() == (step > 0)
        calls = engine.networks(SHAPE).calls["head"]
        assert torch.equal(latents(engine, num_inference_steps=STEPS, checkpoint=path), whole)
        assert engine.networks(SHAPE).calls["head"] - calls == STEPS - step
        assert not path.exists()


def test_resumed_with_what_a_callback_replaced(engine, tmp_path):
    def replaces(owner, step, timestep, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"] + 1} if step == 0 else {}

    def dies(owner, step, timestep, tensors):
        if step == 2:
            raise Killed
        return replaces(owner, step, timestep, tensors)

    options = {"num_inference_steps": STEPS, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    path = tmp_path / "run.safetensors"
    whole = latents(engine, callback_on_step_end=replaces, **options)
    with pytest.raises(Killed):
        latents(engine, callback_on_step_end=dies, checkpoint=path, checkpoint_every=1, **options)
    assert torch.equal(latents(engine, callback_on_step_end=replaces, checkpoint=path, **options), whole)


def test_a_run_without_a_seed_is_resumed_too(engine, tmp_path):
    """Its generator starts anew, and is put back to where that of the killed run was."""
    path, seen = tmp_path / "run.safetensors", []

    def dies(owner, step, timestep, tensors):
        seen.append(tensors["latents"])
        if step == 2:
            raise Killed
        return {}

    options = {"seed": None, "num_inference_steps": STEPS, "checkpoint": path, "checkpoint_every": 1}
    with pytest.raises(Killed):
        latents(engine, callback_on_step_end=dies, **options)
    again = []
    latents(engine, callback_on_step_end=lambda o, s, t, x: again.append(x["latents"]) or {}, **options)
    assert torch.equal(again[0], seen[2])


@pytest.mark.parametrize(
    "change",
    [{"seed": 6}, {"guidance_scale": 5.0}, {"prompt": "Another."}, {"eta": 0.5}, {"use_dynamic_cfg": True},
     {"use_dynamic_cfg": "step"}],
)  # fmt: skip
def test_the_checkpoint_of_another_request_is_refused(engine, tmp_path, change):
    path = tmp_path / "run.safetensors"
    killed_at(engine, 1, path)
    options = {"seed": 5, "prompt": PROMPT, **change}
    with pytest.raises(InputError, match="of another request"):
        engine.generate(random_identity(TINY), num_inference_steps=STEPS, checkpoint=path, **SIZE, **options)


def test_a_damaged_checkpoint_is_refused(engine, tmp_path):
    path = tmp_path / "run.safetensors"
    killed_at(engine, 1, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="is not a checkpoint of a run"):
        latents(engine, num_inference_steps=STEPS, checkpoint=path)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from support.people import random_identity
from consisid.engine import ConsisID
from consisid.engine.variants import TINY
def die(engine, step, timestep, tensors):
    if step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return {}
ConsisID.open(sys.argv[1]).generate(
    random_identity(TINY), "A person walks.", seed=5, num_inference_steps=4, output_type="latent",
    num_frames=9, checkpoint=sys.argv[3], checkpoint_every=1, callback_on_step_end=die,
)
"""


def test_a_killed_process(engine, shallow_folder, tmp_path, request):
    path = tmp_path / "run.safetensors"
    tests = request.config.rootpath / "tests"
    assert run_forked(SCRIPT, shallow_folder, tests, path).returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    whole = latents(engine, num_inference_steps=STEPS)
    assert torch.equal(latents(engine, num_inference_steps=STEPS, checkpoint=path), whole)


def fail_once(engine, monkeypatch, graph, nth=0, shape=SHAPE):
    """One call of a graph runs out of memory."""
    run, calls = engine.networks(shape).runners[graph], []

    def failing(inputs, weights):
        calls.append(graph)
        if len(calls) == nth + 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return run(inputs, weights)

    monkeypatch.setitem(engine.networks(shape).runners, graph, failing)


# One graph of each stage of a run.
GRAPHS = ["face_fold", "vae_encode", "text_norm", "image_embed", "out_modulation", "head", "decode_first"]
WHERE = {"face_fold": "identify", "vae_encode": "identify", "text_norm": "text", "image_embed": "prepare"}


@pytest.mark.parametrize("graph", GRAPHS)
def test_out_of_memory_in_any_stage(engine, shallow, monkeypatch, graph):
    """Without on_oom it is named with what would do; with it the video is the same."""
    options = {"output_type": "uint8" if graph.startswith("decode") else "latent"}
    fail_once(engine, monkeypatch, graph)
    with pytest.raises(DeviceMemoryError) as error:
        latents(engine, random_identity(TINY), **options)
    stage = WHERE.get(graph, "decode" if graph.startswith("decode") else "denoise")
    assert f"stage {stage}" in str(error.value)
    assert "next smaller plan takes" in str(error.value)
    assert 'on_oom="replan"' in str(error.value)

    monkeypatch.undo()
    engine.text_encoder._kept.clear()
    fail_once(engine, monkeypatch, graph)
    video = engine.generate(
        random_identity(TINY), PROMPT, seed=5, num_inference_steps=3, on_oom="replan", cfg="batched", **SIZE, **options
    )
    plain = shallow.generate(
        random_identity(TINY), PROMPT, seed=5, num_inference_steps=3, cfg="batched", **SIZE, **options
    )
    assert video.stats.modes["restarts"].startswith("1 ")
    assert engine.memory is not None
    if graph.startswith("decode"):
        assert video.frames.tobytes() == plain.frames.tobytes()
    else:
        assert torch.equal(video.latents, plain.latents)


def test_another_error_is_not_taken_for_memory(engine, monkeypatch):
    def broken(inputs, weights):
        raise RuntimeError("The shapes do not match.")

    monkeypatch.setitem(engine.networks(SHAPE).runners, "head", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        latents(engine, random_identity(TINY), on_oom="replan")


def test_replanned_from_the_last_finished_step(engine, expected, monkeypatch):
    fail_once(engine, monkeypatch, "head", nth=2)
    video = engine.generate(
        random_identity(TINY), PROMPT, seed=5, num_inference_steps=3, output_type="latent", on_oom="replan", **SIZE
    )
    assert torch.equal(video.latents, expected["batched"])
    assert video.stats.calls["head"] == 1


def streamed(engine, **options):
    return engine.generate(PERSON, PROMPT, **{**OPTIONS, "output_type": "stream", **options})


@pytest.mark.parametrize("graph", ["decode_first", "decode_next"])
def test_a_stream_survives_running_out_of_memory(engine, shallow, monkeypatch, graph):
    """In its first chunk and in a later one; frames that were handed out come once."""
    shape = {"num_frames": engine.shape.num_frames}
    whole = shallow.generate(PERSON, PROMPT, **{**OPTIONS, **shape, "output_type": "uint8"}).frames
    video = streamed(engine, on_oom="replan", decode="whole", **shape)
    fail_once(engine, monkeypatch, graph, shape=engine.shape)
    frames = np.stack(list(video.frames))
    assert frames.tobytes() == whole.tobytes()
    assert video.stats.modes["restarts"].startswith("1 ")
    assert list(video.stats.seconds) == ["identify", "text", "prepare", "denoise", "decode"]


def test_a_stream_names_what_would_do(engine, monkeypatch):
    video = streamed(engine)
    fail_once(engine, monkeypatch, "decode_first")
    with pytest.raises(DeviceMemoryError, match=r"stage decode, with the plan of .*next smaller plan takes"):
        next(video.frames)


def test_a_stream_ends_with_its_last_frame(engine, tmp_path):
    """Until then the checkpoint is there and the weights of the decoder stay."""
    path = tmp_path / "run.safetensors"
    options = {"checkpoint": path, "checkpoint_every": 1, "num_inference_steps": 2}
    video = streamed(engine, **options)
    next(video.frames)
    assert path.exists()
    del video  # as if the process had died here
    calls = engine.networks(SHAPE).calls["head"]
    frames = list(streamed(engine, **options).frames)
    assert engine.networks(SHAPE).calls["head"] == calls
    assert len(frames) == SHAPE.num_frames
    assert not path.exists()


def test_identify_names_running_out_of_memory(engine, monkeypatch, face):
    fail_once(engine, monkeypatch, "eva", shape=engine.shape)
    with pytest.raises(DeviceMemoryError, match="Out of device memory while looking at the photo"):
        engine.identify(face, aligned=True)
    monkeypatch.undo()
    fail_once(engine, monkeypatch, "eva")
    options = {**OPTIONS, "aligned": True, "on_oom": "replan"}
    assert engine.generate(face, PROMPT, **options).stats.modes["restarts"].startswith("1 ")


def poisoned(at):
    return lambda engine, step, timestep, tensors: {"latents": tensors["latents"] * float("nan")} if step == at else {}


def test_latents_that_are_not_finite_are_not_kept(engine, tmp_path):
    path = tmp_path / "run.safetensors"
    options = {"checkpoint": path, "checkpoint_every": 1, "num_inference_steps": STEPS}
    with pytest.raises(NumericalError, match="after step 3 of 4"):
        latents(engine, callback_on_step_end=poisoned(2), **options)
    whole = latents(engine, num_inference_steps=STEPS)
    assert torch.equal(latents(engine, **options), whole)


@pytest.mark.parametrize("at", [0, STEPS - 1])
def test_what_a_callback_returns_has_to_be_finite(engine, at):
    with pytest.raises(NumericalError, match=f"after step {at + 1} of 4"):
        latents(engine, num_inference_steps=STEPS, callback_on_step_end=poisoned(at))


def test_noise_has_to_be_finite(engine):
    noise = torch.full((1, SHAPE.latent_frames, 16, SHAPE.latent_height, SHAPE.latent_width), float("inf"))
    with pytest.raises(NumericalError, match="before the first step"):
        latents(engine, latents=noise)


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ((None, None), ("tiled", (8, 9))),
        (("exact", None), ("exact", (8, 9))),
        (("tiled", None), ("tiled", (8, 9))),
        (("tiled", (10, 10)), ("tiled", (10, 10))),
        (("whole", None), ("whole", None)),
    ],
)
def test_the_tile_is_that_of_the_plan(asked, used):
    stage = StagePlan("decode", (), (), 0, 0, "batched", (8, 9), GIB, 0, 1.0, 0.0, 0)
    run = object.__new__(Run)
    run.options = Options(**dict(zip(("decode", "tile"), asked, strict=True)))
    run.plan = MemoryPlan("preview", GIB, UNKNOWN, (stage,), held=False)
    assert run.decoding == used


def test_no_smaller_plan(engine, monkeypatch):
    monkeypatch.setattr("consisid.engine.run.recovery.smaller", lambda *_, **__: None)
    fail_once(engine, monkeypatch, "head")
    with pytest.raises(DeviceMemoryError, match="There is no smaller plan"):
        latents(engine, on_oom="replan")


def test_another_process_is_told_apart():
    stage = StagePlan("denoise", (), (), 0, 0, "batched", None, 6 * GIB, 0, 1.0, 0.0, 0)
    plan = MemoryPlan("preview", 8 * GIB, UNKNOWN, (stage,), held=False)
    before = DeviceMemory(24 * GIB, 20 * GIB, 3 * GIB)
    foreign = DeviceMemory(24 * GIB, 0, 5 * GIB)
    assert "Another process took 18.00GiB" in explain(plan, before, foreign)
    ours = DeviceMemory(24 * GIB, 16 * GIB, 7 * GIB)
    assert "prediction was too low: 7.00GiB" in explain(plan, before, ours)
    full = DeviceMemory(24 * GIB, 2 * GIB, 1 * GIB)
    assert "other processes had the rest" in explain(plan, full, full)
    assert "pieces too small" in explain(plan, before, DeviceMemory(24 * GIB, 18 * GIB, 5 * GIB))
