"""What is free of a device, and whose doing it was that memory ran out."""

import pytest
import torch

from consisid.engine.memory.device import DeviceMemory, device_memory_free, explain
from consisid.engine.memory.plans import MemoryPlan, StagePlan
from consisid.engine.memory.simulate import UNKNOWN

MIB = 2**20


def test_what_pytorch_has_reserved_is_free_for_auto(monkeypatch):
    """The engine may use again what PyTorch holds; the driver counts it as taken."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**30)
    assert device_memory_free(torch.device("cuda")) == 8 * 2**30


@pytest.mark.parametrize(("grown", "said"), [(65, "Another process took 65.00MiB"), (63, "may be in pieces too small")])
def test_what_the_drivers_figures_move_by_is_no_other_process(grown, said):
    """64 MiB."""
    stage = StagePlan("denoise", (), (), 0, 0, "batched", None, 100 * MIB, 0, 1.0, 0.0, 0)
    plan = MemoryPlan("", 100 * MIB, UNKNOWN, (stage,), held=False)
    before = DeviceMemory(1000 * MIB, 900 * MIB, 0)
    assert said in explain(plan, before, DeviceMemory(1000 * MIB, (900 - grown) * MIB, 0))
