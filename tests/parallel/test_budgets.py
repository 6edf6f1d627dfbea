"""Several devices within budgets of memory, each of its own."""

import re

import pytest
from support.people import random_identity

from consisid.engine import ConsisID
from consisid.engine.errors import MemoryBudgetError
from consisid.engine.variants import PREVIEW

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mesh", ["cfg=2", pytest.param("ring=2", marks=pytest.mark.full)])
def test_weights_stream_to_each_device(shallow, shallow_folder, mesh):
    """What does not fit comes when its stage begins, or for every step, on both."""
    options = {"num_inference_steps": 3, "seed": 3, "output_type": "latent"}
    person = random_identity(shallow.variant)
    expected = shallow.generate(person, "A person.", **options).latents
    with pytest.raises(MemoryBudgetError, match="The smallest budget that works is") as refused:
        ConsisID.open(shallow_folder, devices=2, mesh=mesh, memory=1)
    least = re.search(r"works is (\S+)\.$", str(refused.value))
    assert least is not None
    engine = ConsisID.open(shallow_folder, devices=2, mesh=mesh, memory=least[1], timeout=120)
    try:
        found = engine.generate(person, "A person.", **options)
        assert found.stats.modes["devices"] == f"2, {mesh}"
        assert found.stats.modes["memory"] in ("stages hand over", "2 of 4 blocks stream", "4 of 4 blocks stream")
        assert (found.latents - expected).abs().max() <= 1e-4
        other = engine.generate(person, "A person.", **options | {"output_type": "uint8"})  # decoded under the plan
        assert other.frames.shape == (17, 96, 144, 3)
    finally:
        engine.close()


def test_the_plan_says_what_several_devices_take(shallow_folder):
    one, several = ConsisID.open(shallow_folder), ConsisID.open(shallow_folder, devices=2)
    try:
        plans = [engine.plan(None) for engine in (one, several)]
        assert "on 2 devices (cfg=2)" in str(plans[1])
        assert "the busiest device sends or receives" in str(plans[1])
        assert "device sends" not in str(plans[0])
        for stage in ("denoise", "decode"):
            assert plans[1].stage(stage).sent == 0 or stage == "denoise"
            assert plans[1].stage(stage).arena < plans[0].stage(stage).arena
        assert plans[0].stage("text") == plans[1].stage("text")
    finally:
        several.close()


def test_several_videos_go_through_the_weights_one_after_the_other():
    """So that a plan of several has each one's passes, and saves nothing."""
    import torch

    from consisid.engine.memory.costs import video_costs
    from consisid.engine.memory.planner import candidates
    from consisid.engine.memory.simulate import UNKNOWN
    from consisid.engine.parallel.costs import spread
    from consisid.engine.parallel.mesh import Mesh
    from consisid.engine.shapes import VideoShape
    from consisid.engine.variants import TINY

    found = {}
    for beside in (1, 3):
        one = video_costs(TINY, VideoShape.of(TINY, None, None, None), torch.float32, beside=beside)
        given = {"batch": 1, "guided": True, "fused": False, "rows": False, "beside": beside, "memory": False}
        costs = spread(one, TINY, VideoShape.of(TINY, None, None, None), torch.float32, Mesh(ulysses=3), **given)
        stage = next(each for each in costs.stages if each.name == "denoise")
        ways = candidates(stage, 1, UNKNOWN, "batched", False, False)
        found[beside] = next(way for way in ways if len(way.streamed) == 4 and way.buffers == 2)
    fixed = stage.fixed
    assert found[3].copied - fixed == 3 * (found[1].copied - fixed)
    assert found[3].sent == 3 * found[1].sent
    assert found[3].seconds == pytest.approx(3 * found[1].seconds, rel=0.02)


@pytest.mark.parametrize(("device", "transport", "layers", "holders"), [
    ("cuda", "nccl", 0, 4), ("cuda", "gloo", 0, 1), ("cpu", "gloo", 0, 4), ("cuda", "nccl", 4, 1),
])  # fmt: skip
def test_who_may_keep_a_part_of_the_weights(device, transport, layers, holders):
    """Not where everything passes through the host, nor of engines that hold their weights."""
    from types import SimpleNamespace

    from consisid.engine.parallel.devices import OnDevices
    from consisid.engine.parallel.mesh import Mesh

    spec = SimpleNamespace(layers_per_shard=layers)
    engine = SimpleNamespace(
        device=SimpleNamespace(type=device), mesh=Mesh(cfg=2, ulysses=2, transport=transport),
        manifest=SimpleNamespace(spec=spec),
    )  # fmt: skip
    assert OnDevices.holders.fget(engine) == holders


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_seconds_of_the_preview_follow_from_its_shares(devices):
    """At full size: the blocks' arithmetic is divided, and what passes between devices is added at the wire's rate."""
    import torch

    from consisid.engine.memory.costs import video_costs
    from consisid.engine.memory.planner import plan
    from consisid.engine.memory.simulate import MACHINES
    from consisid.engine.parallel.costs import spread
    from consisid.engine.parallel.mesh import Mesh
    from consisid.engine.shapes import VideoShape

    shape, machine = VideoShape.of(PREVIEW, None, None, None), MACHINES["h100"]
    one = video_costs(PREVIEW, shape, torch.bfloat16, device="cuda")
    mesh = Mesh.choose(devices, 48)
    given = {"batch": 1, "guided": True, "fused": True, "rows": False, "memory": False}
    costs = spread(one, PREVIEW, shape, torch.bfloat16, mesh, **given)
    alone, together = (plan(None, each, machine).stage("denoise") for each in (one, costs))
    wire = together.sent / machine.wire
    blocks = sum(unit.flops for stage in one.stages if stage.name == "denoise" for unit in stage.units)
    saved = 100 * blocks * (1 - 1 / devices) / machine.flops
    assert together.seconds == pytest.approx(alone.seconds - saved + wire, rel=1e-6)
    shares = mesh.shares(PREVIEW, shape)
    block = mesh.block_bytes(0, shares, 1, 48, 64, 2)
    assert together.sent == 100 * (42 * block + mesh.given_bytes(shares, 1, 42, 3072, 2))
