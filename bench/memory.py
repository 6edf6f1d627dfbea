"""Memory over time of one video, against the plan where there is one."""

import os
import threading
import time
from pathlib import Path
from typing import Any, Self

import torch

PERIOD = 0.02  # seconds between samples


class Timeline:
    """Samples memory in a thread of its own inside a `with` block: bytes allocated and reserved on a GPU, resident for
    the process on a CPU."""

    def __init__(self, device: torch.device):
        self.device, self.samples = device, list[tuple[float, int, int]]()
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
            self.samples.append((time.perf_counter() - self._start, *self._now()))
            self._stop.wait(PERIOD)

    def _now(self) -> tuple[int, int]:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)
        file = Path("/proc/self/statm")
        resident = int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.is_file() else 0
        return resident, resident

    def to_dict(self, stages: dict[str, float], limit: int = 600) -> dict[str, Any]:
        """At most `limit` samples, and where each stage began, in seconds and bytes."""
        every = -(-len(self.samples) // limit) or 1
        begins, at = {}, 0.0
        for name, seconds in stages.items():
            begins[name], at = at, at + seconds
        kept = self.samples[::every]
        return {
            "kind": "allocated and reserved on the GPU"
            if self.device.type == "cuda"
            else "resident set of the process",
            "seconds": [s[0] for s in kept],
            "allocated": [s[1] for s in kept],
            "reserved": [s[2] for s in kept],
            "stages": begins,
        }
