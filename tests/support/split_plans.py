"""Plans in which several devices keep the weights of blocks together, whatever the budget and the machine."""

from consisid.engine.memory.planner import candidates
from consisid.engine.memory.plans import MemoryPlan
from consisid.engine.memory.simulate import Machine

LINKED = Machine("linked", 1e12, 1e6, "devices that reach each other sooner than the host", wire=1e12)
STEPS = 3


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
