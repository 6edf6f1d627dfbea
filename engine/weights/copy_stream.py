"""Asynchronous copies from host to device on a side stream."""

import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from ..memory.allocator import GRANULE, aligned


class CopyStream(Protocol):
    """Copies from host to device on a stream of their own. `Any` is an event of the device."""

    def buffer(self, size: int) -> Tensor:
        """uint8 [size] on the device, not to be written by computation."""

    def host(self, size: int) -> Tensor | None:
        """uint8 [size] in pinned host memory, from which copies are asynchronous; None where the system refuses."""

    def copy(self, to: Tensor, source: Tensor) -> None:
        """Queue a copy."""

    def queue(self, work: Callable[[], Any]) -> None:
        """Queue whatever a function does on a device, among the copies."""

    def copied(self) -> Any:
        """An event after all copies so far."""

    def used(self) -> Any:
        """An event after all computation so far."""

    def compute_waits(self, event: Any) -> None:
        """Later computation waits for the copies before `event`; the time counts as a stall."""

    def copy_waits(self, event: Any) -> None:
        """Later copies wait for the computation before `event`."""

    def border(self) -> None:
        """The end of a step."""

    def stalls(self) -> list[float]:
        """Seconds of waiting since the last call of this function: of each step, then of what came after the last
        border. On a GPU the device has to be idle."""


class InlineCopies:
    """Synchronous copies, for a CPU: computation waits for each as long as it takes."""

    def __init__(self) -> None:
        self._stalls = [0.0]

    def buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def host(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, to: Tensor, source: Tensor) -> None:
        self.queue(lambda: to.copy_(source))

    def queue(self, work: Callable[[], Any]) -> None:
        start = time.perf_counter()
        work()
        self._stalls[-1] += time.perf_counter() - start

    def copied(self) -> Any:
        return None

    def used(self) -> Any:
        return None

    def compute_waits(self, event: Any) -> None:
        pass

    def copy_waits(self, event: Any) -> None:
        pass

    def border(self) -> None:
        self._stalls.append(0.0)

    def stalls(self) -> list[float]:
        found, self._stalls = self._stalls, [0.0]
        return found


class CudaCopyStream:
    """Asynchronous host-to-device copies on a side stream, ordered with the current stream by events."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)
        self._waits: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[]]

    def buffer(self, size: int) -> Tensor:
        # The whole segment, whose rest would else go to tensors that live longer, and keep the segment with them.
        return torch.empty(aligned(size, GRANULE), dtype=torch.uint8, device=self.device)[:size]

    def host(self, size: int) -> Tensor | None:
        # Registered rather than allocated pinned: PyTorch rounds pinned memory up to a power of two.
        memory = torch.empty(size, dtype=torch.uint8)
        if int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), size, 0)):
            with suppress(RuntimeError):  # CUDA tells the refusal once more, to the next launch: this one
                torch.empty(1, device=self.device).zero_()
            return None
        address = memory.data_ptr()
        weakref.finalize(memory.untyped_storage(), lambda: torch.cuda.cudart().cudaHostUnregister(address))
        return memory

    def copy(self, to: Tensor, source: Tensor) -> None:
        self.queue(lambda: to.copy_(source, non_blocking=True))

    def queue(self, work: Callable[[], Any]) -> None:
        with torch.cuda.stream(self.stream):
            work()

    def copied(self) -> Any:
        return self.stream.record_event()

    def used(self) -> Any:
        return torch.cuda.current_stream(self.device).record_event()

    def compute_waits(self, event: Any) -> None:
        stream = torch.cuda.current_stream(self.device)
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record(stream)
        stream.wait_event(event)
        after.record(stream)
        self._waits[-1].append((before, after))

    def copy_waits(self, event: Any) -> None:
        self.stream.wait_event(event)

    def border(self) -> None:
        self._waits.append([])

    def stalls(self) -> list[float]:
        found = [sum(before.elapsed_time(after) for before, after in step) / 1000 for step in self._waits]
        self._waits = [[]]
        return found


def copy_stream_of(device: torch.device) -> CopyStream:
    """How copies to a device are made."""
    return CudaCopyStream(device) if device.type == "cuda" else InlineCopies()
