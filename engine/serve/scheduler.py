"""The thread that hands waiting videos to workers, ends those whose time is over, and removes what is old."""

import logging
import time
from collections.abc import Callable
from statistics import median
from threading import Condition, Thread

from .files import OF_VIDEO, WORKING, Files, expired
from .metrics import Metrics
from .progress import Board, Progress
from .refusals import Refusal
from .settings import Settings
from .store import RUNNING, Store, VideoRow
from .waiting import Waiting
from .worker import Begun, Cancelled, Failed, Lost, Made, Report, Stepped, Task, Worker

LOG = logging.getLogger("consisid.serve")
GUESS = 30.0  # seconds of a video, before the first was made
RECENT = 20
LONGEST = 600  # seconds that a client is told to wait
TOO_LATE = "The video was not ready within {:g} seconds of being asked for."


class Scheduler:
    """What waits is in the store; this is who is next, and what is in work.

    Args:
        task_of: what a worker is told of a video.
        keys: how many people there are.
    """

    def __init__(self, settings: Settings, store: Store, files: Files, workers: list[Worker], board: Board,
                 task_of: Callable[[VideoRow], Task], keys: int):  # fmt: skip
        self.settings, self.store, self.files, self.board, self.task_of = settings, store, files, board, task_of
        self.limits = settings.limits
        share = self.limits.waiting_per_key
        self._share = share if share is not None else self.limits.waiting if keys < 2 else -(-self.limits.waiting // 2)
        self._changed = Condition()
        self._waiting, self._deadlines = Waiting(), dict[str, float]()
        self._workers = {worker: set[str]() for worker in workers}
        self._accepted = dict[str, float]()
        self._recent = [GUESS]
        self._why = dict[str, Failed]()  # of videos that were told to end
        self._closed, self._swept = False, 0.0
        self.metrics = Metrics(lambda: self.waiting, lambda: self.running, lambda: board.watchers)
        self._thread = Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Go on with what an earlier server left."""
        self.files.sweep(self.store.names())
        for row in self.store.unfinished():
            if row.attempts >= self.limits.attempts:
                self._fail(row.id, Failed("gave_up", f"The server stopped {row.attempts} times in this video."))
            else:
                self.store.requeue(row.id)
                self._add(row)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._waiting.in_work)

    def check_room(self, owner: str) -> None:
        """Raises Refusal where no more videos may wait."""
        if len(self._waiting) >= self.limits.waiting:
            reason, count = f"{self.limits.waiting} videos wait already", 1
        elif self._waiting.of(owner) >= self._share:
            reason, count = f"{self._share} videos of your API key wait already", self._share
        else:
            return
        slots = sum(worker.slots for worker in self._workers)
        after = min(LONGEST, max(1, round(median(self._recent) * count / max(1, slots))))
        raise Refusal(
            429, "queue_full", f"{reason}; try again in {after} seconds.", headers={"retry-after": str(after)}
        )

    def admit(self, owner: str, make: Callable[[], VideoRow]) -> VideoRow:
        """Put a video into the queue.

        Args:
            make: its row in the store.

        Raises:
            Refusal: there is no room.
        """
        with self._changed:
            self.check_room(owner)
            row = make()
            self._add(row)
            self._changed.notify()
        return row

    def _add(self, row: VideoRow, first: bool = False) -> None:
        self._waiting.add(row.id, row.owner, first)
        self._accepted[row.id] = row.created
        if row.deadline is not None:
            self._deadlines[row.id] = row.deadline

    def end(self, id: str, why: Failed) -> None:
        """A video ends at its next step, or at once while it waits, and has failed for this reason."""
        with self._changed:
            waited = self._waiting.remove(id)
            worker = None if waited else self._worker_of(id)
            if waited:
                self._forget(id)
            elif worker is not None:
                self._why.setdefault(id, why)
        if waited:
            self._fail(id, why)
        elif worker is not None:
            worker.cancel(id)

    def _worker_of(self, id: str) -> Worker | None:
        return next((worker for worker, ids in self._workers.items() if id in ids), None)

    def _run(self) -> None:
        while True:
            try:
                if self._step():
                    return
            except Exception:
                LOG.exception("the scheduler goes on")
                time.sleep(1.0)

    def _step(self) -> bool:
        """Do what can be done now, and wait for more; whether it is over."""
        if time.time() - self._swept >= self.settings.retention.every:
            self._swept = time.time()
            for id in expired(self.store, self.settings.retention):
                self.store.delete_video(id)
                self.files.remove(OF_VIDEO, id)
        for id, deadline in list(self._deadlines.items()):
            if deadline <= time.time():
                allowed = deadline - self._accepted.get(id, deadline)
                self._deadlines.pop(id, None)
                self.end(id, Failed("deadline_exceeded", TOO_LATE.format(round(allowed, 1))))
        with self._changed:
            if self._closed:
                return True
            free = [worker for worker, ids in self._workers.items() if len(ids) < worker.slots and worker.healthy()]
            worker = min(free, key=lambda each: len(self._workers[each]), default=None)
            chosen = None if worker is None else self._waiting.next()
            if worker is None or chosen is None:
                nearest = min(self._deadlines.values(), default=time.time() + 1.0) - time.time()
                self._changed.wait(min(1.0, max(0.01, nearest)))
                return False
            self._workers[worker].add(chosen)
        row = self.store.video(chosen)
        if row is None:  # deleted meanwhile
            self._forget(chosen)
            return False
        try:
            self.store.attempt(chosen)
            worker.start(self.task_of(row), lambda report: self.heard(chosen, report))
        except Exception:  # a full disk, a worker that is gone: not the video's fault, and its slot is free again
            self._lost(chosen, Lost("The server could not begin it."))
            raise
        if chosen in self._why:  # it was told to end while the worker did not know it yet
            worker.cancel(chosen)
        return False

    def heard(self, id: str, report: Report) -> None:
        """A worker says what became of a video."""
        if self._closed:
            return  # it goes on with the next server
        if isinstance(report, Begun):
            self.store.begin(id)
            self.board.set(id, Progress(0, report.steps))
        elif isinstance(report, Stepped):
            self._stepped(id, report)
        elif isinstance(report, Lost):
            self._lost(id, report)
        else:
            self._ended(id, report)

    def _stepped(self, id: str, report: Stepped) -> None:
        before = self.board.get(id)
        if before.step == 0 and id in self._accepted:
            self.metrics.waited.observe(time.time() - self._accepted[id])
        kept = (before.preview, before.preview_step) if report.preview is None else (report.preview, report.step)
        self.board.set(id, Progress(report.step, report.steps, *kept))

    def _lost(self, id: str, report: Lost) -> None:
        """Begin again, before others of the same key, unless that was done too often."""
        why, accepted = self._why.get(id), self._accepted.get(id)
        self._forget(id)
        row = self.store.video(id)
        if row is None or accepted is None:
            return
        if why is not None or row.attempts >= self.limits.attempts:
            self._fail(id, why or Failed("gave_up", f"{report.message} It was begun {row.attempts} times."))
            return
        LOG.warning("%s is begun again: %s", id, report.message)
        if row.status == RUNNING:
            self.store.requeue(id)
        with self._changed:
            self._add(row, first=True)
            self._changed.notify()

    def _ended(self, id: str, report: Made | Failed | Cancelled) -> None:
        why, accepted = self._why.get(id), self._accepted.get(id, time.time())
        self._forget(id)
        if isinstance(report, Made):
            took = time.time() - accepted
            self._recent = [*self._recent[-RECENT + 1 :], took]
            self.metrics.made(report.seconds, report.facts.get("peak_bytes", 0), took)
            self.store.complete(id, {**report.facts, "stages": dict(report.seconds)}, self.files.size(id))
            self.files.remove(WORKING, id)
        elif isinstance(report, Cancelled):
            self._fail(id, why or Failed("cancelled", "The video was cancelled."))
        else:
            self._fail(id, report)
        if self.store.video(id) is None:  # deleted while it ended
            self.files.remove(OF_VIDEO, id)
        self.board.drop(id)
        with self._changed:
            self._changed.notify()

    def _fail(self, id: str, why: Failed) -> None:
        self.metrics.ended.labels(why.code).inc()
        self.store.fail(id, why.code, why.message)
        self.files.remove(OF_VIDEO, id)
        self.board.drop(id)

    def _forget(self, id: str) -> None:
        with self._changed:
            self._waiting.done(id)
            for ids in self._workers.values():
                ids.discard(id)
            for known in (self._deadlines, self._accepted, self._why):
                known.pop(id, None)

    def healthy(self) -> bool:
        return self._thread.is_alive() and any(worker.healthy() for worker in self._workers)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for id in self._waiting.in_work:
            self.store.requeue(id, counted=False)
