"""Videos that go through the weights together, step by step, each with the bytes that it has alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..engine import Engine
from ..errors import DeviceMemoryError, InputError, MemoryBudgetError, shown
from ..memory.device import OutOfMemory, first_line
from ..memory.plans import MemoryPlan
from ..prediction import Prediction, TimeTable, Work, run_together, time_table
from ..run.holder import Holder
from ..run.recovery import turn_to_smaller_plan
from ..run.request import Request
from ..run.run import Run, plan_of
from ..runtime.executor import GraphExecutor
from ..shapes import whole
from ..video import Video
from .jobs import Job
from .queue import VideoQueue

SIZES = (1, 2, 3, 4, 6, 8)  # videos at once that a plan chooses from
WORTH_IT = 1.02  # fewer at once end sooner: more have to save some of the time
PATIENCE = 1.0  # seconds between looks at an empty queue

Making = Work[list[Video]]


class _Going:
    """A job whose video is being made."""

    def __init__(self, job: Job, run: Run, work: Making):
        self.job, self.run, self.work = job, run, work
        self.prediction: Prediction | None = None


class Group(Holder):
    """Runs of one shape and with the same LoRAs, under one plan of the memory. Others join at the border of a step, as
    long as there is room; those that cannot join begin when these have ended.

    Every run keeps its own samples: a layer is called once for each of them, one after the other, while its weights are
    there. So nothing that one computes depends on another, and the weights are needed once for all.

    Args:
        make: ConsisID.make of the engine.
        together: videos at once at most; None for what the plan says takes least time for each.
    """

    def __init__(
        self, engine: Engine, make: Callable[[Run, Sequence[Any], bool], Making], queue: VideoQueue,
        together: int | None,
    ):  # fmt: skip
        super().__init__(engine)
        self.make, self.queue, self.together = make, queue, together
        self.size = 1
        self._going: list[_Going] = []
        self._looked_at: dict[Job, Run] = {}  # those that wait
        self._wave: list[Run] = []  # what begins together
        self._like: Run | None = None  # what others have to be like, to join it
        self._steps = 0  # of the longest that the plan is for
        self._tables: WeakValueDictionary[Any, TimeTable] = WeakValueDictionary()

    @property
    def runs(self) -> Sequence[Holder]:
        return [each.run for each in self._going]

    def leave(self, run: Holder) -> bool:
        self._going = [each for each in self._going if each.run is not run]
        return not self._going

    def jobs(self) -> Iterator[Job]:
        """Jobs as they end, until the queue is closed and empty. Whoever reads no further cancels those that run."""
        try:
            while True:
                self.queue.refill()
                yield from self._pass()
                if not self._going and not len(self.queue):
                    if self.queue.closed:
                        return
                    self.queue.rest(PATIENCE)
        finally:
            with self.engine.turn():
                for each in list(self._going):
                    self._end(each, "cancelled")
            self.queue.abandon()

    def _pass(self) -> list[Job]:
        """A prediction of each, and what begins and ends at its borders."""
        ended = [self._fail(job, "cancelled") for job in self.queue.dropped()]
        with self.engine.turn(), torch.no_grad():
            ended += [self._end(each, "cancelled") for each in list(self._going) if each.job.cancelling]
            ended += self._admit()
            if self._going:
                self.enter()  # others may have had the device
                ran_out = OutOfMemory(self.engine.device)
                run_together([each.prediction for each in self._going if each.prediction is not None])
                ended += [job for each in list(self._going) for job in self._go_on(each, ran_out)]
        return ended

    def _admit(self) -> list[Job]:
        """Let jobs begin, in the order of the queue, until there is no room or one cannot join; those that fail."""
        ended: list[Job] = []
        while len(self._going) < self.size or not self._going:
            job = next(iter(self.queue.waiting()), None)
            if job is None:
                break
            try:
                run = self._look_at(job)
                if self._going and not self._may_join(run):
                    break
                if not self._going:
                    self._plan_for(run)
            except Exception as error:
                self.queue.take(job)
                ended.append(self._fail(job, "failed", error))
                continue
            self.queue.take(job)
            del self._looked_at[job]
            ended += self._begin(job, run)
            self.queue.refill()
        return ended

    def _look_at(self, job: Job) -> Run:
        """The run of a job that waits; raises what is wrong with it."""
        if job not in self._looked_at:
            if job.request is None:
                assert job.error is not None
                raise job.error
            run = Run(self.engine, Request.check(self.engine, job.request.options))
            run.owner = self
            run.open()
            run.table = self._table
            self._looked_at[job] = run
        return self._looked_at[job]

    def _may_join(self, other: Run) -> bool:
        """Whether a run goes together with those that are under way, and the plan has room for it."""
        like, plan = self._like, self.plan
        assert like is not None
        if not _alike(other, like):
            return False
        return plan is None or (
            other.request.batch == 1 and other.request.guided <= like.request.guided and _keeps(other) <= _keeps(like)
            and len(other.loop_steps) <= self._steps and other.cfg_asked in (None, plan.cfg)
            and other.request.may_tile == like.request.may_tile
        )  # fmt: skip

    def _plan_for(self, first: Run) -> None:
        """How many there will be at once and the plan, when nothing is under way; raises MemoryBudgetError."""
        recorded = self.engine.weights.captures is not None  # calls whose outputs are always in the same place
        self.loras, self.interrupt, self.plan, self._like = first.loras, False, None, first
        self._wave = [first, *self._others(first)]
        self._steps = max(len(run.loop_steps) for run in self._wave)
        if first.budget is None:
            self.size = 1 if recorded else self.together or 1
            return
        most = 1 if recorded or first.request.batch > 1 else self.together or len(self._wave)
        plans: dict[int, MemoryPlan] = {}
        for size in [most, *(size for size in reversed(SIZES) if size < most)]:
            try:
                plans[size] = plan_of(first, first.budget, first.cfg_asked, self._steps, size)
            except MemoryBudgetError:
                if size == 1:
                    raise
                continue
            if self.together is not None:
                break
        least = min(plan.seconds / size for size, plan in plans.items())
        self.size = min(size for size, plan in plans.items() if plan.seconds / size <= WORTH_IT * least)
        self.plan = plans[self.size]

    def _others(self, first: Run) -> list[Run]:
        """Those of the next that wait which may begin together with the first."""
        found = []
        for job in self.queue.waiting()[: self.together or SIZES[-1]]:
            try:
                found.append(self._look_at(job))
            except Exception:  # it is raised again when it is the job's turn
                continue
        return [run for run in found if run is not first and _alike(run, first)]

    def _begin(self, job: Job, run: Run) -> list[Job]:
        """A job's video begins: until its first prediction."""
        assert job.request is not None
        run.plan, run.apart = self.plan, self.plan is not None and self.size > 1
        job.state, job.steps, job.step = "running", len(run.loop_steps), 0
        run.look = _watcher(job)
        each = _Going(job, run, self._work(run, job.request.person, job.request.aligned))
        ran_out = OutOfMemory(self.engine.device)
        self._going.append(each)
        return self._go_on(each, ran_out)

    def _work(self, run: Run, person: Any, aligned: bool) -> Making:
        run.begin()
        wave, self._wave = self._wave[: self.size], []
        if len(wave) > 1:  # the text encoder's weights too are needed once for all; it keeps what it has encoded
            texts = [text for each in wave for text in each.request.all_texts]
            self.engine.text_encoder(run.networks, list(dict.fromkeys(texts))[: self.engine.text_encoder.KEPT])
        return (yield from self.make(run, [person], aligned))

    def _go_on(self, each: _Going, ran_out: OutOfMemory) -> list[Job]:
        """To the next prediction; the job, if it has ended."""
        self.enter()  # a callback may have made a video of its own
        try:
            each.prediction = next(each.work)
            return []
        except StopIteration as end:
            return [self._end(each, "done", end.value[0] if each.run.request.single else end.value)]
        except Exception as error:
            if not (isinstance(error, RuntimeError) and ran_out.is_it(error)):
                return [self._end(each, "failed", error=error)]
            message = first_line(error)
        # Here the traceback, and with it the tensors of the attempt, are gone.
        return self._with_less(each, message)

    def _with_less(self, each: _Going, message: str) -> list[Job]:
        """Out of memory: beside fewer others, or where there are none, with the next smaller plan if that is wanted."""
        run, each.prediction = each.run, None
        if len(self._going) > 1:
            self.size = len(self._going) - 1
            self.leave(run)
            self._looked_at[each.job] = run
            self.queue.put(each.job)
            return []
        try:
            turn_to_smaller_plan(run, message)
        except DeviceMemoryError as error:
            return [self._end(each, "failed", error=error)]
        self.plan, self.size = run.plan, 1
        self.engine.hand_over(None)
        self.leave(run)
        return self._begin(each.job, run)

    def _end(self, each: _Going, state: str, video: Any = None, error: Exception | None = None) -> Job:
        each.work.close()
        run = each.run
        if run.streaming:  # its frames are read by themselves
            if self.leave(run):
                self.engine.give_back()
            run.owner = run
        else:
            run.ended(None, complete=state == "done")
        return each.job.end(state, video, error)

    def _fail(self, job: Job, state: str, error: Exception | None = None) -> Job:
        """A job that waits has ended."""
        self._looked_at.pop(job, None)
        return job.end(state, error=error)

    def _table(self, networks: GraphExecutor, timesteps: Tensor) -> TimeTable:
        """The adaptive norms of every step, which runs of the same schedule share."""
        key = (*timesteps.tolist(), networks.weights.version)
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = time_table(networks, timesteps)
        return found


def _alike(one: Run, other: Run) -> bool:
    """Whether two runs go through the same weights and graphs."""
    return one.request.shape == other.request.shape and one.loras == other.loras


def _keeps(run: Run) -> int:
    """How much a run's loop keeps from step to step."""
    return 0 if run.loop_costs is None else run.loop_costs.keeps + run.loop_costs.looks


def _watcher(job: Job) -> Callable[[int, Tensor], None]:
    def look(step: int, latents: Tensor) -> None:
        job.step = step + 1
        if job.on_step is not None:
            job.on_step(job, step, latents)

    return look


def check_together(together: Any) -> int | None:
    """Videos at once, None for the plan's choice; raises InputError."""
    if together is not None and not 1 <= whole("together", together) <= SIZES[-1]:
        raise InputError(f"together={shown(together)} has to be from 1 to {SIZES[-1]}, or None for the plan's choice.")
    return None if together is None else int(together)
