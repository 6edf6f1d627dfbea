"""Frames that are read while they are decoded are part of their run: its plan, its checkpoint, its recovery."""

import gc

import numpy as np
import pytest
import torch
from support.residency import PERSON, PROMPT, Killed

from consisid.engine.errors import DeviceMemoryError
from consisid.engine.memory.device import DeviceShare

pytestmark = pytest.mark.slow

OPTIONS = {"seed": 5, "num_inference_steps": 1, "guidance_scale": 1.0, "height": 96, "width": 144, "num_frames": 17}


@pytest.fixture(scope="module")
def whole(shallow):
    return shallow.generate(PERSON, PROMPT, **OPTIONS).frames


def stream(engine, **options):
    return engine.generate(PERSON, PROMPT, **OPTIONS, output_type="stream", **options)


def fails_once(engine, monkeypatch, graph, error):
    """The first call of a graph raises."""
    runners = engine.networks().runners
    run, errors = runners[graph], [error]

    def failing(inputs, weights):
        if errors:
            raise errors.pop()
        return run(inputs, weights)

    monkeypatch.setitem(runners, graph, failing)


@pytest.mark.parametrize(("graph", "read"), [("decode_first", 0), ("decode_next", 9)])
def test_out_of_memory_between_frames_is_named(engine, monkeypatch, graph, read):
    fails_once(engine, monkeypatch, graph, torch.OutOfMemoryError("CUDA out of memory."))
    frames = stream(engine).frames
    for _ in range(read):
        next(frames)
    with pytest.raises(DeviceMemoryError, match="stage decode") as error:
        next(frames)
    assert 'on_oom="replan"' in str(error.value)
    assert next(frames, None) is None


@pytest.mark.parametrize("graph", ["decode_first", "decode_next"])
def test_out_of_memory_between_frames_is_survived(engine, monkeypatch, whole, graph):
    """The frames that were read are not given again; the rest comes under a smaller plan."""
    fails_once(engine, monkeypatch, graph, torch.OutOfMemoryError("CUDA out of memory."))
    video = stream(engine, on_oom="replan")
    assert np.array_equal(np.stack(list(video.frames)), whole)
    assert video.stats.modes["restarts"].startswith("1 ")
    assert video.stats.seconds["decode"] > 0
    assert video.stats.steps
    assert engine.memory is not None


def test_killed_between_frames_and_resumed(engine, monkeypatch, whole, tmp_path):
    """The checkpoint lives until the last frame has been read."""
    path = tmp_path / "run.safetensors"
    options = {"checkpoint": path, "checkpoint_every": 1}
    fails_once(engine, monkeypatch, "decode_next", Killed())
    with pytest.raises(Killed):
        list(stream(engine, **options).frames)
    assert path.exists()
    steps = engine.networks().calls["head"]
    frames = stream(engine, **options).frames
    assert path.exists()
    assert np.array_equal(np.stack(list(frames)), whole)
    assert engine.networks().calls["head"] == steps
    assert not path.exists()


def limits(monkeypatch):
    found = []
    monkeypatch.setattr(DeviceShare, "begin", lambda self, reserved: found.append(reserved))
    monkeypatch.setattr(DeviceShare, "end", lambda self: found.append(None))
    return found


@pytest.mark.parametrize("end", ["read", "close", "drop"])
def test_the_limit_holds_until_the_stream_ends(shallow_folder, monkeypatch, tmp_path, end):
    from consisid.engine import ConsisID

    engine, found, path = (
        ConsisID.open(shallow_folder, memory="1GiB"),
        limits(monkeypatch),
        tmp_path / "run.safetensors",
    )
    video = stream(engine, checkpoint=path, checkpoint_every=1)
    next(video.frames)
    assert set(found) == {2**30}
    assert engine.weights._bound or engine.weights.plan.held
    if end == "read":
        list(video.frames)
    elif end == "close":
        video.frames.close()
    else:
        del video
        gc.collect()
    assert found[-1] is None
    assert engine.weights._stage is None
    assert path.exists() == (end != "read")


def test_another_run_between_frames(shallow_folder, monkeypatch):
    """It takes the device with a plan and a limit of its own, and gives it back."""
    from consisid.engine import ConsisID

    engine, found = ConsisID.open(shallow_folder, memory="115MiB"), limits(monkeypatch)
    whole = engine.generate(PERSON, PROMPT, **OPTIONS).frames
    frames = stream(engine).frames
    read = [next(frames)]
    engine.memory *= 2
    engine.generate(PERSON, PROMPT, **{**OPTIONS, "num_frames": 9}, output_type="latent")
    assert found[-1] is None
    read += [next(frames)]
    assert found[-1] == 115 * 2**20
    assert np.array_equal(np.stack([*read, *frames]), whole)


def test_the_stats_of_a_stream_are_those_of_the_run(shallow_folder):
    """All that it copied, its last frames included."""
    from consisid.engine import ConsisID

    engine = ConsisID.open(shallow_folder, memory="115MiB")
    engine.generate(PERSON, PROMPT, **OPTIONS)  # what is kept of the person and the prompt is there then
    whole = engine.generate(PERSON, PROMPT, **OPTIONS).stats
    video = stream(engine)
    list(video.frames)
    assert video.stats.streamed_bytes == whole.streamed_bytes
    assert video.stats.calls == whole.calls
    assert len(video.stats.stalls) == len(whole.stalls)
