"""One call of generate: its plan, its clock, what it has finished, and what happens when memory runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import memory
from .denoise import LoopState
from .errors import DeviceMemoryError, InputError
from .memory import MemoryPlan, show
from .request import Request
from .snapshots import Snapshot, fingerprint, states
from .stats import Clock, Stats

if TYPE_CHECKING:
    from .opening import Opened

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
    if after.reserved > plan.peak:
        return f"The plan's prediction was too low: {show(after.reserved)} are reserved. Please report this plan."
    return "Neither another process nor the plan's prediction explains it; the memory may be in pieces too small."


class Run:
    """Made by `guarded`. `networks`, `clock` and `cfg` are what the stages of generate use."""

    def __init__(self, engine: "Opened", request: Request):
        self.engine, self.request = engine, request
        self.options = request.options
        self.networks = engine.networks(request.shape)
        given = request.generator
        self.generators = given if isinstance(given, list) else [given]
        self.start = states(self.generators)
        self.snapshot: Snapshot | None = None
        self.restarts, self._fingerprint, self._expected = 0, "", ""
        self.path = None if self.options["checkpoint"] is None else Path(self.options["checkpoint"])
        if self.path is not None and self.path.exists():
            self.snapshot, self._expected = Snapshot.load(self.path, engine.device)
            self.start = self.snapshot.start
        self.plan = engine.plan_of(request, self.cfg_asked) if engine.memory is not None else None
        self.before = DeviceMemory.now(engine.device)
        self.stage_name, self.step = "identify", 0
        self._begin()

    @property
    def cfg_asked(self) -> str | None:
        """The guidance mode that has to be: the caller's, or that of the steps that are finished."""
        return self.options["cfg"] or (self.snapshot.cfg if self.snapshot else None)

    @property
    def cfg(self) -> str:
        return self.plan.cfg if self.plan is not None else self.cfg_asked or "batched"

    @property
    def decoding(self) -> tuple[str | None, tuple[int, int] | None]:
        """How the latents are decoded: as the caller says, else in the tiles of the plan, else whole."""
        mode, tile = self.options["decode"], self.options["tile"]
        if mode is None and self.plan is not None and self.plan.tile is not None:
            return "tiled", self.plan.tile
        return mode, tile

    def _begin(self) -> None:
        engine, weights = self.engine, self.engine.weights
        weights.use(self.plan)
        for generator, state in zip(self.generators, self.start, strict=True):
            generator.set_state(state)
        modes = {"cfg": self.cfg, "dtype": engine.manifest.spec.dtype, "device": str(engine.device)}
        modes["graphs"] = "none" if weights.captures is None else "block"
        if self.decoding[0] not in (None, "whole"):
            modes["decode"] = " ".join(str(part) for part in self.decoding if part is not None)
        if self.plan is not None:
            modes["memory"] = self.plan.mode
        if self.restarts:
            modes["restarts"] = f"{self.restarts} after running out of memory"
        self.clock = Clock(engine.device, self.networks.calls, modes)
        self._modes, self._copied = modes, weights.copied
        self._stalls: list[float] = []
        _limit(engine.device, None if self.plan is None else self.plan.budget)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of the run, timed."""
        self.stage_name, lane = name, self.engine.weights.lane
        lane.stalls()
        with self.clock.stage(name):
            yield
        if name == "denoise":
            *self._stalls, _ = lane.stalls()

    def watch(self, step: int) -> None:
        """After each denoising step."""
        self.step = step + 1
        self.engine.weights.lane.border()
        self.clock.step(step)

    def resume(self, *conditions: Any) -> LoopState | None:
        """Where the loop goes on, None at its beginning.

        Args:
            conditions: all that the latents depend on besides the caller's options; the same in every attempt.

        Raises:
            InputError: the checkpoint is of another request.
        """
        names = ("num_inference_steps", "guidance_scale", "use_dynamic_cfg", "eta", "seed")
        if self.path is not None:
            chosen = [self.options[name] for name in names]
            self._fingerprint = fingerprint(self.engine.manifest.spec.key, *chosen, *conditions)
        if self.snapshot is None:
            return None
        # Of what this very call has kept, nothing is expected.
        if self._expected not in ("", self._fingerprint):
            raise InputError(f"{self.path} is the checkpoint of another request; delete it, or give another path.")
        for generator, state in zip(self.generators, self.snapshot.now, strict=True):
            generator.set_state(state)
        return self.snapshot.loop

    @property
    def keep(self) -> Callable[[LoopState], None] | None:
        """What remembers finished steps, if anybody will ask."""
        return self._keep if self.path is not None or self.options["on_oom"] == "replan" else None

    def _keep(self, loop: LoopState) -> None:
        self.snapshot = Snapshot(loop, self.cfg, self.start, states(self.generators))
        if self.path is not None and loop.steps % self.options["checkpoint_every"] == 0:
            self.snapshot.save(self.path, self._fingerprint)

    def out_of_memory(self, message: str) -> None:
        """Go on with the next smaller plan, or say what would do.

        Raises:
            DeviceMemoryError: the plan, the stage and the next smaller plan.
        """
        engine, after = self.engine, DeviceMemory.now(self.engine.device)
        current = self.plan or engine.plan_of(self.request, self.cfg, unlimited=True)
        reason = explain(current, self.before, after)
        self._release()
        # The steps that are finished fix the mode; before the first any will do, unless the caller chose.
        following = memory.smaller(current, engine.sizes_of(self.request), cfg=self.cfg_asked, tiling=engine.tiling)
        where = f"stage {self.stage_name}" + (f", step {self.step + 1}" if self.stage_name == "denoise" else "")
        text = f"Out of device memory in the {where}, with the plan of {show(current.peak)} ({current.mode}). {reason}"
        if following is None:
            raise DeviceMemoryError(f"{text} There is no smaller plan. ({message})")
        if self.options["on_oom"] != "replan":
            raise DeviceMemoryError(
                f"{text} The next smaller plan takes {show(following.peak)} ({following.mode}): open the engine with "
                f'memory="{show(following.peak)}", or generate with on_oom="replan". ({message})'
            )
        engine.memory = following.budget
        self.plan, self.restarts, self.before = following, self.restarts + 1, after
        self._begin()

    def stats(self) -> Stats:
        """Times and peaks of the run, its last attempt where there were several."""
        weights, stats = self.engine.weights, self.clock.stats()
        stats.streamed_bytes = weights.copied - self._copied
        stats.stalls = self._stalls
        stats.predicted_bytes = self.plan.peak if self.plan is not None else None
        if weights.source:
            self._modes["weights from"] = weights.source
        return stats

    def finished(self) -> None:
        """The video is made: nobody has to go on from the checkpoint."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _release(self) -> None:
        self.engine.weights.leave()
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()


def _limit(device: torch.device, budget: int | None) -> None:
    """Let PyTorch reserve no more of a GPU than the budget; None lifts the limit."""
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(1.0 if budget is None else min(1.0, budget / total), device)


def guarded(engine: "Opened", request: Request, make: Callable[[Run], Any]) -> Any:
    """Run `make`, again with a smaller plan after running out of memory where the request says so.

    Raises:
        MemoryBudgetError: the engine's budget is too small for this request; nothing was loaded.
        DeviceMemoryError: out of memory.
    """
    run = Run(engine, request)
    try:
        while True:
            try:
                made = make(run)
                run.finished()
                return made
            except torch.OutOfMemoryError as error:
                message = str(error).splitlines()[0] if str(error) else type(error).__name__
            # Here the traceback, and with it the tensors of the attempt, are gone.
            run.out_of_memory(message)
    finally:
        engine.weights.leave()
        _limit(engine.device, None)
