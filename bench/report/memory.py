"""Memory over time of one video, against the plan."""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch

from consisid.engine import ConsisID

PERIOD = 0.02  # seconds between samples
ON_GPU = "allocated and reserved on the GPU"
ON_CPU = "resident in the process since the engine was opened, libraries that it loads included"
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
        before: bytes of the process that are not the engine's; taken off on a CPU.
    """

    def __init__(self, device: torch.device, before: int = 0):
        self.device, self.samples = device, list[tuple[float, int, int]]()
        self.before = 0 if device.type == "cuda" else before
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
            allocated, reserved = (max(0, size - self.before) for size in now(self.device))
            self.samples.append((time.perf_counter() - self._start, allocated, reserved))
            self._stop.wait(PERIOD)

    def to_dict(self, stages: Mapping[str, float], limit: int = 600) -> dict[str, Any]:
        """At most `limit` samples, where each stage began, and the peak of each that was long enough to be seen, in
        seconds and bytes."""
        kept = self.samples[:: -(-len(self.samples) // limit) or 1]
        begins, peaks, at = dict[str, float](), dict[str, int](), 0.0
        for name, seconds in stages.items():
            seen = [reserved for when, _, reserved in self.samples if at <= when < at + seconds]
            peaks |= {name: max(seen)} if seen else {}
            begins[name], at = at, at + seconds
        return {
            "kind": ON_GPU if self.device.type == "cuda" else ON_CPU,
            **{key: [s[i] for s in kept] for i, key in enumerate(("seconds", "allocated", "reserved"))},
            "stages": begins,
            "peaks": peaks,
        }


def planned(engine: ConsisID, steps: int, stages: Mapping[str, float]) -> dict[str, Any]:
    """What the engine's plan says about one video, by timed stage.

    The peaks are without the allowance for CUDA itself, which PyTorch does not count.
    """
    # Without a budget generate() runs both halves of guidance at once.
    plan = engine.plan(engine.memory, steps=steps, cfg=None if engine.memory else "batched")
    peaks = {name: max(plan.stage(part).peak for part in PLANNED[name]) - plan.context for name in stages}
    return {
        "budget": plan.budget, "mode": plan.mode, "cfg": plan.cfg, "tile": plan.tile and list(plan.tile),
        "peak": plan.peak, "allowance": plan.context, "stages": peaks,
    }  # fmt: skip
