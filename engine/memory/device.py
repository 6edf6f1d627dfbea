"""The memory of a device: what is free, what limits this process, and why it ran out."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from .budget import show
from .plans import MemoryPlan

ROUNDING = 64 * 2**20  # bytes: what the driver's figures move by on their own


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device: its size, what the driver says is free, and what this process has reserved through PyTorch."""

    total: int
    free: int
    reserved: int

    @classmethod
    def now(cls, device: torch.device) -> "DeviceMemory":
        """The present state; zeros on a CPU."""
        if device.type != "cuda":
            return cls(0, 0, 0)
        free, total = torch.cuda.mem_get_info(device)
        return cls(total, free, torch.cuda.memory_reserved(device))

    @property
    def others(self) -> int:
        """What is taken and not reserved by this process: other processes, and CUDA's own."""
        return self.total - self.free - self.reserved


def explain(plan: MemoryPlan, before: DeviceMemory, after: DeviceMemory) -> str:
    """Whose doing it was that memory ran out, as far as the figures tell."""
    grown = after.others - before.others
    if grown > ROUNDING:
        return f"Another process took {show(grown)} of the device since this run began."
    if after.total and before.free + before.reserved < plan.peak:
        return (
            f"Before the run {show(before.free + before.reserved)} were to be had of the device, less than the plan's "
            f"{show(plan.peak)}: other processes had the rest."
        )
    if after.reserved > plan.reserved:
        return f"The plan's prediction was too low: {show(after.reserved)} are reserved. Please report this plan."
    return "Neither another process nor the plan's prediction explains it; the memory may be in pieces too small."


class DeviceShare:
    """What of a GPU an engine may reserve through PyTorch, beside what the rest of the process has reserved there: the
    limit is one of the process, so it is moved when the engine begins to compute and put back when it ends.

    Attributes:
        others, others_allocated: bytes that others had reserved, and of these allocated, when the engine last began.
    """

    def __init__(self, device: torch.device):
        self.device, self.others, self.others_allocated = device, 0, 0
        self._own, self._own_allocated = 0, 0
        self._fraction: float | None = None

    def begin(self, reserved: int | None) -> None:
        """Let the engine reserve so many bytes; None for no limit."""
        if self.device.type != "cuda":
            return
        if self._fraction is None:
            self._fraction = torch.cuda.get_per_process_memory_fraction(self.device)
            torch.cuda.empty_cache()  # free memory that others keep counts as theirs
            self.others = max(0, torch.cuda.memory_reserved(self.device) - self._own)
            self.others_allocated = max(0, torch.cuda.memory_allocated(self.device) - self._own_allocated)
        fraction = self._fraction
        if reserved is not None:
            fraction = min(fraction, (self.others + reserved) / _total(self.device))
        torch.cuda.set_per_process_memory_fraction(fraction, self.device)

    def end(self) -> None:
        """The engine computes no more; what it still holds is its own when it begins again."""
        if self.device.type == "cuda" and self._fraction is not None:
            self._own = max(0, torch.cuda.memory_reserved(self.device) - self.others)
            self._own_allocated = max(0, torch.cuda.memory_allocated(self.device) - self.others_allocated)
            torch.cuda.set_per_process_memory_fraction(self._fraction, self.device)
            self._fraction = None


def _total(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)


class OutOfMemory:
    """Whether an error says that a device ran out of memory, asked of the allocator: what is raised inside a compiled
    package arrives as a RuntimeError that says nothing of it.

    Made before the work that may fail.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._before = self._refused()

    def _refused(self) -> int:
        """Allocations that the device's allocator has refused so far."""
        return int(torch.cuda.memory_stats(self.device)["num_ooms"]) if self.device.type == "cuda" else 0

    def is_it(self, error: RuntimeError) -> bool:
        return isinstance(error, torch.OutOfMemoryError) or self._refused() > self._before


def first_line(error: RuntimeError) -> str:
    """What PyTorch says in the first place; the rest is advice about its allocator."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def device_memory_free(device: torch.device) -> int:
    """Bytes that a budget of "auto" starts from: what the driver says is free, and what PyTorch holds already."""
    if device.type != "cuda":
        return host_memory_free()
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def host_memory_free() -> int:
    """Bytes that the host can still give: the system's, or the control group's where that is less."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        free = min(free, control_group_free(Path("/sys/fs/cgroup"), free))
    except (OSError, StopIteration, ValueError):
        pass  # not Linux, or no such control group
    return max(0, free)


def control_group_free(group: Path, otherwise: int) -> int:
    """Bytes that a control group can still take, of either version; `otherwise` where it has no limit. The page cache
    of files counts as free: the system gives it up when memory is asked for.

    Raises:
        OSError, ValueError: there is no such group.
    """
    first = group / "memory"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first.is_dir() else ("memory.max", "memory.current")
    place = first if first.is_dir() else group
    limit, used = ((place / name).read_text().strip() for name in names)
    if limit == "max":
        return otherwise
    stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
    cached = sum(int(stat.get(name, 0)) for name in ("active_file", "inactive_file"))
    return int(limit) - int(used) + cached
