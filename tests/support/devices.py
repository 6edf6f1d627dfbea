"""Videos on several devices, and plans in which these keep the weights of blocks together, whatever the budget and the
machine."""

import torch

from consisid.engine import ConsisID
from consisid.engine.memory.planner import candidates
from consisid.engine.memory.plans import MemoryPlan
from consisid.engine.memory.simulate import Machine

from .people import random_identity

LINKED = Machine("linked", 1e12, 1e6, "devices that reach each other sooner than the host", wire=1e12)
STEPS = 2


def on_devices(request, shallow_folder):
    """An engine on as many devices as the parameter says, in its mesh: to be made a fixture."""
    devices, mesh = request.param
    engine = ConsisID.open(shallow_folder, devices=devices, mesh=mesh, timeout=120)
    yield engine
    engine.close()


def made(engine, **options):
    """Final latents of a video of a stranger."""
    asked = {"num_inference_steps": STEPS, "seed": 3, "output_type": "latent"} | options
    found = engine.generate(random_identity(engine.variant), "A person walks through snow.", **asked)
    return torch.stack([each.latents for each in (found if isinstance(found, list) else [found])])


def near(one, other):
    return (one - other).abs().max() <= 1e-4


def split(engine, streamed, buffers=2, cfg="batched", **options):
    """A plan in which so many of the four blocks stream from all devices, and nothing else streams."""
    asked = {"shape": engine.shape, "batch": 1, "steps": STEPS, "guided": True} | options
    costs = engine.costs(**asked)
    ways = {each.name: candidates(each, costs.granule, LINKED, cfg, False, False) for each in costs.stages}
    (way,) = (
        way
        for way in ways["denoise"]
        if (len(way.streamed), way.buffers, way.rows) == (streamed, buffers, 1) and way.holders > 1
    )
    stages = tuple(way if name == "denoise" else found[0] for name, found in ways.items())
    return MemoryPlan(costs.label, 2**30, LINKED, stages, held=False)
