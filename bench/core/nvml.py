"""The GPU's own account of a run, through NVML: energy, clocks, temperature, throttling, who else was there.

NVML comes as an argument everywhere, so that tests pass one of their own. Functions and constants are those of the
distribution nvidia-ml-py (module pynvml).
"""

import os
import statistics
import threading
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Self

import torch

from consisid.engine.errors import InputError

# Bits of the clock event reasons (nvml.h). Reaching the power limit is how a GPU works under full load, so it is
# recorded only; what follows from heat or from a failing supply makes figures that nobody can repeat.
THROTTLED = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
POWER_CAP = 0x04
PERIOD = 0.2  # seconds between samples
SAMPLED = {  # what a report calls it -> who answers, with which of NVML's constants, and what one unit is
    "sm_clock_mhz": ("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM", 1.0),
    "memory_clock_mhz": ("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM", 1.0),
    "temperature_c": ("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU", 1.0),
    "watts": ("nvmlDeviceGetPowerUsage", None, 1e-3),
}


def load_nvml() -> tuple[Any, str | None]:
    """(NVML, None) ready to be asked, or (None, why not)."""
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return None, "nvidia-ml-py is not installed; pip install 'consisid[bench]'"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, f"NVML does not answer ({error})"
    return nvml, None


@dataclass
class Watched:
    """What was seen between start and stop of a Watch.

    values: by the names of SAMPLED. reasons: of all samples together. others: processes that were not there when the
    watch was made, and not us.
    """

    joules: float | None = None
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SAMPLED})
    reasons: int = 0
    others: set[int] = field(default_factory=set)

    @property
    def throttled(self) -> list[str]:
        return [name for bit, name in THROTTLED.items() if self.reasons & bit]

    def summary(self) -> dict[str, Any]:
        """Medians and extremes, ready for JSON; None where a GPU does not tell."""
        return {
            "joules": self.joules,
            **{
                name: {"low": min(seen), "median": statistics.median(seen), "high": max(seen)} if seen else None
                for name, seen in self.values.items()
            },
            "power_capped": bool(self.reasons & POWER_CAP),
            "throttled": self.throttled,
            "other_processes": len(self.others),
        }


class Watch:
    """Samples one GPU in a thread of its own, between `with watch:` and its end.

    Make it before CUDA is first used. Inside a container the number of our process is not the one that NVML lists, so
    what is ours is told by time: who is listed before we have a context is another, the one that then appears is us.
    """

    def __init__(self, nvml: Any, handle: Any):
        self.nvml, self.handle = nvml, handle
        self._started = torch.cuda.is_initialized()
        self._before = self._processes()
        self._ours: set[int] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.seen = Watched()

    @classmethod
    def of(cls, nvml: Any, index: int | None) -> Self:
        """The GPU that PyTorch calls cuda:index (None: 0), without waking CUDA, which would put us on its list."""
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        name = visible[index or 0].strip() if len(visible) > (index or 0) else str(index or 0)
        if name.isdigit():
            return cls(nvml, nvml.nvmlDeviceGetHandleByIndex(int(name)))
        return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(name))

    def check_same(self, device: torch.device) -> None:
        """Once CUDA is awake: raises InputError where NVML watches another GPU than PyTorch uses."""
        here, there = self._ask("nvmlDeviceGetUUID"), getattr(torch.cuda.get_device_properties(device), "uuid", None)
        if here is not None and there is not None and str(there) not in str(here):
            raise InputError(
                f"NVML watches GPU {here}, PyTorch uses {there}: they number GPUs differently here; set "
                "CUDA_DEVICE_ORDER=PCI_BUS_ID."
            )

    @property
    def driver(self) -> str:
        return str(self.nvml.nvmlSystemGetDriverVersion())

    def clock(self) -> float | None:
        """MHz of the multiprocessors now."""
        return self._ask("nvmlDeviceGetClockInfo", self.nvml.NVML_CLOCK_SM)

    def others(self) -> set[int]:
        """Processes on the GPU that are not ours."""
        if self._started:
            return self._before - {os.getpid()} if self._ours is None else self._processes() - self._ours
        return self._processes() - (self._ours or set())

    def ours_is_here(self) -> None:
        """Call once our context exists: from now on whoever else appears is another."""
        self._ours = {os.getpid()} if self._started else (self._processes() - self._before) | {os.getpid()}

    def __enter__(self) -> Self:
        self.seen = Watched()
        self._energy = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        self._stop.clear()
        self._sample()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._sample()
        energy = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        if energy is not None and self._energy is not None:
            self.seen.joules = (energy - self._energy) / 1000  # NVML counts millijoules

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            self._sample()

    def _sample(self) -> None:
        for name, (function, constant, unit) in SAMPLED.items():
            value = self._ask(function, *([] if constant is None else [getattr(self.nvml, constant)]))
            if value is not None:
                self.seen.values[name].append(value * unit)
        self.seen.reasons |= self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        self.seen.others |= self.others()

    def _ask(self, name: str, *arguments: Any) -> Any:
        """What NVML answers, or None where this GPU or driver does not know."""
        try:
            return getattr(self.nvml, name)(self.handle, *arguments)
        except (self.nvml.NVMLError, AttributeError):
            return None

    def _processes(self) -> set[int]:
        return {process.pid for process in self._ask("nvmlDeviceGetComputeRunningProcesses") or ()}
