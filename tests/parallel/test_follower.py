"""What the other devices do before they are asked to compute."""

import logging
from datetime import timedelta

import pytest
import torch
from support.people import random_identity

from consisid.engine import ConsisID
from consisid.engine.manifest import Manifest
from consisid.engine.memory.planner import candidates
from consisid.engine.memory.plans import MemoryPlan
from consisid.engine.memory.simulate import UNKNOWN
from consisid.engine.parallel.costs import Silent
from consisid.engine.parallel.follower import Follower, PartEngine
from consisid.engine.parallel.mesh import Mesh

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", ["denoise", "decode"])
def test_weights_come_with_the_beginning(shallow_folder, stage):
    """And not with the first call."""
    mesh = Mesh.parse("cfg=2", 3)
    manifest = Manifest.read(shallow_folder)
    engine = PartEngine(shallow_folder, manifest, torch.device("cpu"), None, mesh=mesh)
    costs = engine.costs(engine.shape, 1, 2, True)
    ways = [candidates(each, costs.granule, UNKNOWN, None, False, False) for each in costs.stages]
    stages = tuple(next(way for way in found if not way.streamed) for found in ways)
    follower = Follower(engine, Silent(1, 2, torch.device("cpu"), timedelta(1)), mesh)
    plan = MemoryPlan(costs.label, 2**30, UNKNOWN, stages, held=False)
    follower.begin(engine.shape.pixels, plan, 0, stage)
    copied = engine.weights.copied
    units = next(each for each in costs.stages if each.name == stage)
    assert copied >= units.fixed + sum(unit.bytes for unit in units.units) > 0
    if stage == "denoise":
        engine.weights.acquire("block", 0)
        assert engine.weights.copied == copied
    follower.rest()
    assert engine.active is None


def test_the_others_know_of_a_video_before_its_prompt_is_encoded(shallow_folder, caplog):
    engine = ConsisID.open(shallow_folder, devices=2, timeout=120)
    orders, order = [], engine.team.order

    def heard(what, **values):
        orders.append((what, [record.args[0] for record in caplog.records if record.name == "consisid"]))
        order(what, **values)

    engine.team.order = heard
    try:
        with caplog.at_level(logging.INFO, "consisid"):
            engine.generate(random_identity(engine.variant), "A.", num_inference_steps=1, output_type="latent")
    finally:
        engine.close()
    what, stages = orders[0]
    assert what == "begin"
    assert "text" not in stages
    assert sum(each == "begin" for each, _ in orders) == 1
