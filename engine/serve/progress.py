"""How far videos are, for whoever watches. The last word counts: who reads slowly misses steps and holds nobody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

NEARLY = 99  # percent, when all steps are done and the video is not


@dataclass(frozen=True)
class Progress:
    """step: finished steps, of `steps`; 0 of 0 before it begins. preview: a JPEG, of step `preview_step`."""

    step: int = 0
    steps: int = 0
    preview: bytes | None = None
    preview_step: int = 0

    @property
    def percent(self) -> int:
        return NEARLY * self.step // self.steps if self.steps else 0


@dataclass(eq=False)
class Watcher:
    """Somebody in an event loop who waits for a change."""

    loop: asyncio.AbstractEventLoop
    changed: asyncio.Event


class Board:
    """The progress of unfinished videos, from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._progress: dict[str, Progress] = {}
        self._watchers: dict[str, set[Watcher]] = {}

    def get(self, id: str) -> Progress:
        return self._progress.get(id, Progress())

    def set(self, id: str, progress: Progress) -> None:
        with self._lock:
            self._progress[id] = progress
        self._tell(id)

    def drop(self, id: str) -> None:
        """It has ended, or is gone."""
        with self._lock:
            self._progress.pop(id, None)
        self._tell(id)

    def _tell(self, id: str) -> None:
        with self._lock:
            for watcher in self._watchers.get(id, ()):
                with suppress(RuntimeError):  # its loop was closed: nobody waits there
                    watcher.loop.call_soon_threadsafe(watcher.changed.set)

    @property
    def watchers(self) -> int:
        with self._lock:
            return sum(map(len, self._watchers.values()))

    async def changes(self, id: str, every: float) -> AsyncIterator[bool]:
        """At once, and then after each change (True), or after so many seconds without one (False)."""
        watcher = Watcher(asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._watchers.setdefault(id, set()).add(watcher)
        try:
            yield True
            while True:
                try:
                    await asyncio.wait_for(watcher.changed.wait(), every)
                except TimeoutError:
                    yield False
                    continue
                watcher.changed.clear()
                yield True
        finally:
            with self._lock:
                self._watchers[id].discard(watcher)
                if not self._watchers[id]:
                    del self._watchers[id]
