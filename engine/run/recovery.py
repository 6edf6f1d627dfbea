"""What happens when a device runs out of memory: the next smaller plan, or a sentence that names it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from ..engine import Engine
from ..errors import DeviceMemoryError
from ..memory.budget import Budget, chosen, show
from ..memory.costs import CONTEXT
from ..memory.device import DeviceMemory, OutOfMemory, explain, first_line
from ..memory.planner import smaller
from .run import Run, plan_of

T = TypeVar("T")


def run_with_oom_retry(run: Run, make: Callable[[Run], T]) -> T:
    """What `make` gives, in this thread's turn at the device; made again with a smaller plan after running out of
    memory where the request says so.

    Raises:
        MemoryBudgetError: the budget is too small for this request; nothing was loaded.
        DeviceMemoryError: out of memory.
    """

    def work() -> T:
        run.begin()
        return make(run)

    with run.engine.turn():
        run.open()
        try:
            made = attempt(run, work)
        except BaseException:
            run.ended(None, complete=False)
            raise
        if not run.streaming:
            run.ended(None, complete=True)
        return made


def attempt(run: Run, work: Callable[[], T], again: Callable[[], None] = lambda: None) -> T:
    """What `work` gives; after running out of memory `again` prepares the next attempt, under a smaller plan.

    Raises:
        DeviceMemoryError: there is no smaller plan, or the request does not want one.
    """
    while True:
        ran_out = OutOfMemory(run.engine.device)
        try:
            return work()
        except RuntimeError as error:
            if not ran_out.is_it(error):
                raise
            message = first_line(error)
        # Here the traceback, and with it the tensors of the attempt, are gone.
        turn_to_smaller_plan(run, message)
        again()


def turn_to_smaller_plan(run: Run, message: str) -> None:
    """The next smaller plan for a run that is out of memory, or what would do.

    Raises:
        DeviceMemoryError: the plan, the stage and the next smaller plan.
    """
    engine, request, after = run.engine, run.request, DeviceMemory.now(run.engine.device)
    present = run.plan or plan_of(run, None, run.cfg)
    reason = explain(present, run.before, after)
    engine.weights.evict()
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()
    # The steps that are finished fix the mode; before the first any will do, unless the caller chose.
    costs = engine.costs(
        request.shape, request.batch, request.options.num_inference_steps, request.guided, run.loop_costs
    )
    following = smaller(present, costs, cfg=run.cfg_asked, tiling=request.may_tile)
    where = f"stage {run.stage_name}" + (f", step {run.step + 1}" if run.stage_name == "denoise" else "")
    text = f"Out of device memory in the {where}, with the plan of {show(present.peak)} ({present.mode}). {reason}"
    if following is None:
        raise DeviceMemoryError(f"{text} There is no smaller plan. ({message})")
    if request.options.on_oom != "replan":
        raise DeviceMemoryError(
            f"{text} The next smaller plan takes {show(following.peak)} ({following.mode}): open the engine with "
            f'memory="{show(following.peak)}", or generate with on_oom="replan". ({message})'
        )
    if run.memory == "engine":
        engine.memory = following.budget  # the next run would run out of it too
    run.plan, run.restarts, run.before = following, run.restarts + 1, after


@contextmanager
def outside_runs(engine: Engine, doing: str, remedy: str, memory: Budget = "engine") -> Iterator[None]:
    """In this thread's turn at the device: what computes outside a run keeps to a budget too, and gives the device
    back.

    Args:
        doing, remedy: for the error, "looking at the photo" and what to do instead.
        memory: the budget.

    Raises:
        DeviceMemoryError: out of memory.
    """
    message = None
    with engine.turn():
        before, ran_out = DeviceMemory.now(engine.device), OutOfMemory(engine.device)
        engine.hand_over(None)
        budget = chosen(memory, engine.memory)
        engine.share.begin(None if budget is None else budget - CONTEXT["cuda"])
        try:
            yield
        except RuntimeError as error:
            if not ran_out.is_it(error):
                raise
            message = first_line(error)
        finally:
            engine.give_back()
        if message is not None:
            plan = engine.plan(budget)
            reason = explain(plan, before, DeviceMemory.now(engine.device))
            raise DeviceMemoryError(
                f"Out of device memory while {doing}, with the plan of {show(plan.peak)}. {reason} {remedy} ({message})"
            )
