"""Short work for a device that is busy with long work: it is done between two steps.

A photo is looked at in a second, and a video takes minutes, for all of which it has the device.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from threading import Condition, Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Errands:
    """A list of work that two threads take from: the one that makes videos, after each step, and one that waits for the
    device to be free.

    Args:
        turn: waits for the device.
    """

    def __init__(self, turn: Callable[[], AbstractContextManager[None]]):
        self._turn = turn
        self._waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed, self._closed = Condition(), False
        self._thread = Thread(target=self._wait_for_turns, name="errands", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], T]) -> "Future[T]":
        """Do something in one of the two threads; its result, or what it raised."""
        found: Future[T] = Future()
        with self._changed:
            if self._closed:
                found.cancel()
                return found
            self._waiting.append((work, found))
            self._changed.notify()
        return found

    def run_waiting(self) -> None:
        """Do what waits, in this thread, which has the device."""
        while True:
            with self._changed:
                if not self._waiting:
                    return
                work, found = self._waiting.popleft()
            if not found.set_running_or_notify_cancel():
                continue
            try:
                found.set_result(work())
            except BaseException as error:  # it is raised where the result is asked for
                found.set_exception(error)

    def _wait_for_turns(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
            with self._turn():
                self.run_waiting()

    def close(self) -> None:
        """What still waits is cancelled."""
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for _, found in left:
            found.cancel()
        self._thread.join()
