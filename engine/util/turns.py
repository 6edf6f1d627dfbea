"""Turns at a device: one thread computes there at a time, in the order in which they came.

What computes shares more than an engine could guard alone: the limit that PyTorch puts on a process's memory, the free
memory that a plan counts on, and modules whose weights change from call to call.
"""

import os
import warnings
from collections import deque
from collections.abc import Callable
from functools import cache
from threading import Event, Lock, get_ident
from types import TracebackType
from typing import Any, Protocol

import torch


class Occupant(Protocol):
    """A run, as far as an engine knows it. interrupt: its loop ends after the present step."""

    interrupt: bool

    def enter(self) -> None:
        """It has the device from now on."""

    def suspend(self) -> None:
        """Another has the device from now on."""

    def leave(self, run: Any) -> bool:
        """One of its runs has ended; whether that was the last."""


class Turn:
    """A lock that is fair, and that its owner may take again: a callback may make a video of its own."""

    def __init__(self) -> None:
        self._lock = Lock()  # of the fields below, never held while anything is waited for
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, Event]] = deque()
        self._later: deque[Callable[[], None]] = deque()

    def __enter__(self) -> None:
        me = get_ident()
        with self._lock:
            if self._owner in (None, me):
                self._owner, self._depth = me, self._depth + 1
                return
            place = me, Event()
            self._waiting.append(place)
        try:
            place[1].wait()
        except BaseException:  # an interrupt
            with self._lock:
                given_up = place in self._waiting
                if given_up:
                    self._waiting.remove(place)
            if not given_up:
                self._pass_on()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pass_on()

    def soon(self, work: Callable[[], None]) -> None:
        """Do something at the device in this thread's turn, without waiting for one: at once where it is free, else
        when its present owner is done. A finalizer may call this."""
        self._later.append(work)
        if self._lock.acquire(blocking=False):
            free = self._owner is None
            if free:
                self._owner, self._depth = get_ident(), 1
            self._lock.release()
            if free:
                self._pass_on()

    def _pass_on(self) -> None:
        while True:
            while self._depth == 1 and self._later:
                work = self._later.popleft()
                try:
                    work()
                except Exception as error:  # nobody else's work may fail by it, and the turn has to pass on
                    warnings.warn(f"Giving back what a video held failed: {error!r}", stacklevel=2)
            with self._lock:
                if self._depth == 1 and self._later:
                    continue  # it came in between
                self._depth -= 1
                if self._depth == 0:
                    self._owner = None
                    if self._waiting:
                        self._owner, event = self._waiting.popleft()
                        self._depth = 1
                        event.set()
                return


@cache
def _turn(device: torch.device, process: int) -> Turn:
    return Turn()


def turn_of(device: torch.device) -> Turn:
    """The one turn of a device in this process; a forked child has its own, which no thread of its parent holds."""
    return _turn(device, os.getpid())
