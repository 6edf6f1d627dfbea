"""Weights that stream from the other devices, each of which keeps a part, instead of from the host."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.devices import STEPS, made, near, on_devices, split
from support.loras import lora
from support.people import random_identity

from consisid.engine.errors import InputError
from consisid.engine.memory.allocator import part_bytes
from consisid.engine.memory.costs import video_costs
from consisid.engine.memory.planner import plan
from consisid.engine.memory.simulate import MACHINES
from consisid.engine.parallel.costs import spread
from consisid.engine.parallel.mesh import Mesh
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW

pytestmark = pytest.mark.slow

FULL = pytest.mark.full
MESHES = [
    pytest.param((2, "cfg=2"), id="guidance"),
    pytest.param((2, "ring=2"), id="ring", marks=FULL),
    pytest.param((3, "ulysses=3"), id="ulysses", marks=FULL),
    pytest.param((4, "cfg=2,ring=2"), id="guidance and ring", marks=FULL),
]


several = pytest.fixture(scope="module", params=MESHES)(on_devices)


@pytest.fixture
def planned(several, monkeypatch):
    """Makes the engine follow a plan."""

    def follow(streamed, buffers=2, cfg="batched", **options):
        chosen = split(several, streamed, buffers, cfg, **options)
        monkeypatch.setattr("consisid.engine.run.run.plan_of", lambda *_, **__: chosen)
        monkeypatch.setattr(several, "memory", 2**30)
        several.team.exchange.sent.clear()
        return chosen

    return follow


@pytest.mark.parametrize(
    ("streamed", "buffers", "options"),
    [
        pytest.param(4, 2, {}, id="all"),
        pytest.param(4, 4, {}, id="as many buffers", marks=FULL),
        pytest.param(2, 2, {}, id="half of them", marks=FULL),
        pytest.param(4, 3, {"cfg": "sequential"}, id="halves one after the other", marks=FULL),
        pytest.param(4, 2, {"num_videos_per_prompt": 3, "cfg": "sequential"}, id="an odd batch", marks=FULL),
        pytest.param(3, 2, {"guidance_scale": 1.0}, id="unguided"),
        pytest.param(4, 2, {"num_inference_steps": 6, "shortcuts": {"first_block": 0.3}}, id="first-block cache"),
        pytest.param(4, 2, {"num_inference_steps": 6, "shortcuts": {"cache": 0.3}}, id="step cache", marks=FULL),
        pytest.param(4, 2, {"num_videos_per_prompt": 2}, id="two videos", marks=FULL),
    ],
)
def test_latents_are_those_of_one_device(several, shallow, planned, streamed, buffers, options):
    """Also where one device has nothing to compute, and the others its weights."""
    planned(streamed, buffers, options.get("cfg", "batched"))
    assert near(made(several, **options), made(shallow, **options))
    assert several.team.exchange.sent["weights"] > 0


def test_bytes_are_those_of_the_plan(several, planned):
    """Of the host each device reads everything once, and of the others in every pass what it has not."""
    chosen = planned(4)
    stage = chosen.stage("denoise")
    stats = several.generate(
        random_identity(several.variant), "A person walks.", num_inference_steps=STEPS, seed=3, output_type="latent"
    ).stats
    assert stats.modes["memory"] == f"4 of 4 blocks stream from {several.mesh.size} devices"
    (costs,) = (each for each in several.costs(several.shape, 1, STEPS, True).stages if each.name == "denoise")
    units, others = costs.units, several.mesh.size - 1
    gathered = STEPS * others * sum(part_bytes(unit.bytes, several.mesh.size) for unit in units)
    assert several.team.exchange.sent["weights"] == gathered
    assert stage.sent == costs.sent * 2 * STEPS + gathered
    assert stage.copied < 2 * sum(unit.bytes for unit in units)
    assert stats.streamed_bytes <= sum(each.copied for each in chosen.stages)


@pytest.mark.parametrize("together", [1, 2])
def test_many_videos(several, shallow, planned, together):
    """That go through the weights one after the other on several devices."""
    planned(4)
    person = random_identity(shallow.variant)
    given = {"identity": person, "num_frames": 9, "output_type": "latent", "num_inference_steps": 2}
    requests = [{**given, "prompt": f"Person {i}.", "seed": i} for i in range(3)]
    found = {job.request.options.seed: job.result() for job in several.generate_many(requests, together=together)}
    for request in requests:
        expected = shallow.generate(person, **{k: v for k, v in request.items() if k != "identity"})
        assert near(found[request["seed"]].latents, expected.latents)


def test_frames_that_are_read_between_two_videos(several, shallow, planned):
    planned(4)
    person, options = random_identity(shallow.variant), {"num_inference_steps": 2, "seed": 3}
    stream = several.generate(person, "A.", output_type="stream", **options).frames
    first = next(stream)
    assert near(made(several), made(shallow))
    frames = np.stack([first, *stream])
    expected = shallow.generate(person, "A.", **options).frames
    assert np.abs(frames.astype(int) - expected.astype(int)).max() <= 1


def test_a_photo_without_a_face(several, shallow, planned):
    """The others have begun by then; the next video is right."""
    planned(4)
    with pytest.raises(InputError):
        several.generate(np.zeros((96, 144, 3), np.uint8), "A.", num_inference_steps=2)
    assert near(made(several), made(shallow))


def test_other_videos_in_between(several, shallow, planned):
    """Of another size, with everything on the devices, with a LoRA and cut short: the same bytes afterwards."""
    planned(4)
    expected = made(several)
    assert near(made(several, num_frames=9), made(shallow, num_frames=9))
    for engine in (several, shallow):
        engine.load_lora_weights(lora(shallow.checkpoint))
    try:
        found = made(several)
        assert near(found, made(shallow))
        assert torch.equal(made(several), found)
    finally:
        for engine in (several, shallow):
            engine.unload_lora_weights()
    with pytest.raises(ZeroDivisionError):
        made(several, callback_on_step_end=lambda *_: 1 / 0)
    assert torch.equal(made(several), expected)
    several.memory = None
    assert near(made(several), expected)


@pytest.mark.parametrize(
    ("devices", "frames", "source"),
    [
        pytest.param(2, 49, "blocks stream", id="two", marks=FULL),
        pytest.param(4, 49, "blocks stream", id="four", marks=FULL),
        pytest.param(4, 25, "blocks stream from 4 devices", id="four, short", marks=FULL),
        pytest.param(8, 49, "blocks stream from 8 devices", id="eight"),
    ],
)
def test_a_plan_asks_the_others_where_the_host_is_too_slow(devices, frames, source):
    """At full size on H100s: what two compute hides every copy from the host, what eight do does not."""
    shape, machine = VideoShape.of(PREVIEW, None, None, frames), MACHINES["h100"]
    one = video_costs(PREVIEW, shape, torch.bfloat16, device="cuda")
    mesh = Mesh.choose(devices, 48)
    given = {"batch": 1, "guided": True, "fused": True, "rows": True, "holders": devices}
    costs = spread(one, PREVIEW, shape, torch.bfloat16, mesh, **given)
    found = plan(5 * 2**30, costs, machine, tiling=True)
    assert found.mode.endswith(source)
    alone = replace(costs, stages=tuple(replace(stage, holders=1) for stage in costs.stages))
    host = plan(5 * 2**30, alone, machine, tiling=True)
    assert found.seconds <= host.seconds
    if source.endswith("devices"):
        assert found.seconds < 0.95 * host.seconds
        assert f"each of {devices} devices keeps a part of what streams" in str(found)
    no_wire = replace(machine, wire=None)
    assert plan(5 * 2**30, costs, no_wire, tiling=True).stage("denoise").holders == 1
