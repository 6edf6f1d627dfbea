"""Whose video is next: fair between API keys."""

import itertools
from collections import deque


class Waiting:
    """Videos that wait, in the order of each key; not for several threads at once.

    The next is of the key with the fewest videos in work, and among those of the one that was served longest ago: a key
    with a hundred videos delays the first one of another key by those in work only.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[str]] = {}
        self._served: dict[str, int] = {}  # when each key was served last, counted in videos; also of keys that left
        self._count = itertools.count(1)
        self._owners: dict[str, str] = {}
        self._in_work: dict[str, str] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def add(self, id: str, owner: str, first: bool = False) -> None:
        queue = self._queues.setdefault(owner, deque())
        if first:
            queue.appendleft(id)
        else:
            queue.append(id)
        self._owners[id] = owner

    def of(self, owner: str) -> int:
        """How many wait of a key."""
        return len(self._queues.get(owner, ()))

    def remove(self, id: str) -> bool:
        """Whether it waited."""
        queue = self._queues.get(self._owners.get(id, ""), deque())
        if id not in queue:
            return False
        queue.remove(id)
        del self._owners[id]
        return True

    def next(self) -> str | None:
        """Take it; it is in work until `done`."""
        waiting = [owner for owner, queue in self._queues.items() if queue]
        if not waiting:
            return None
        busy = list(self._in_work.values())
        owner = min(waiting, key=lambda owner: (busy.count(owner), self._served.get(owner, 0)))
        id = self._queues[owner].popleft()
        self._served[owner] = next(self._count)
        self._in_work[id] = self._owners.pop(id)
        return id

    def done(self, id: str) -> None:
        self._in_work.pop(id, None)

    @property
    def in_work(self) -> list[str]:
        return list(self._in_work)

    def ids(self) -> list[str]:
        return list(itertools.chain.from_iterable(self._queues.values()))
