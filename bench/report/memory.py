"""Memory over time of one video, against the plan."""

import os
import threading
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch

from consisid.engine import ConsisID
from consisid.engine.memory.planner import MemoryPlan

PERIOD = 0.02  # seconds between samples
KINDS = {
    "cuda": "allocated and reserved on the GPU",
    "cpu": "resident in the process since the engine was opened, libraries that it loads included",
}
# Stages that are timed -> stages of the memory that run in them. The photo's networks run for a photo only; what is
# measured is given embeddings.
PLANNED: Mapping[str, tuple[str, ...]] = {
    "identify": ("face", "image"),
    "text": ("text",),
    "prepare": ("prepare",),
    "denoise": ("schedule", "denoise"),
    "decode": ("decode",),
}


def now(device: torch.device) -> tuple[int, int]:
    """Bytes allocated and reserved on a GPU; on a CPU twice the resident set of the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    file = Path("/proc/self/statm")
    resident = int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.is_file() else 0
    return resident, resident


class Timeline:
    """Samples memory in a thread of its own inside a `with` block.

    Args:
        baseline: bytes of the process that are not the engine's; taken off on a CPU.
    """

    def __init__(self, device: torch.device, baseline: int = 0):
        self.device, self.samples = device, list[tuple[float, int, int]]()
        self.baseline = 0 if device.type == "cuda" else baseline
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            allocated, reserved = (max(0, size - self.baseline) for size in now(self.device))
            self.samples.append((time.perf_counter() - self._start, allocated, reserved))
            self._stop.wait(PERIOD)

    def to_dict(self, stages: Mapping[str, float], limit: int = 600) -> dict[str, Any]:
        """At most `limit` samples, where each stage began, and the peak of each that was long enough to be seen, in
        seconds and bytes."""
        every = -(-len(self.samples) // limit) or 1
        begins, at = {}, 0.0
        for name, seconds in stages.items():
            begins[name], at = at, at + seconds
        borders = [*begins.items(), ("", at)]
        seen = {
            name: [reserved for when, _, reserved in self.samples if begin <= when < end]
            for (name, begin), (_, end) in pairwise(borders)
        }
        kept = self.samples[::every]
        return {
            "kind": KINDS["cuda" if self.device.type == "cuda" else "cpu"],
            "seconds": [s[0] for s in kept],
            "allocated": [s[1] for s in kept],
            "reserved": [s[2] for s in kept],
            "stages": begins,
            "peaks": {name: max(values) for name, values in seen.items() if values},
        }


def planned(engine: ConsisID, steps: int, stages: Mapping[str, float]) -> dict[str, Any]:
    """What the engine's plan says about one video, by timed stage.

    The peaks are without the allowance for CUDA itself, which PyTorch does not count.
    """
    # Without a budget generate() runs both halves of guidance at once.
    plan = engine.plan(engine.memory, steps=steps, cfg=None if engine.memory else "batched")
    return {
        "budget": plan.budget,
        "mode": plan.mode,
        "cfg": plan.cfg,
        "tile": plan.tile and list(plan.tile),
        "peak": plan.peak,
        "allowance": plan.context,
        "stages": {name: _peak(plan, PLANNED[name]) - plan.context for name in stages},
    }


def _peak(plan: MemoryPlan, names: tuple[str, ...]) -> int:
    return max(plan.stage(name).peak for name in names)
