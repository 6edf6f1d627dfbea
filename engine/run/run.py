"""One call of generate: everything that changes while it lasts."""

import copy
import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..conditioning import time_embeddings
from ..decode.tile import Tile, check_tile
from ..denoise import LoopState, guidance_weight, not_finite
from ..engine import Engine
from ..first_block import first_block_of
from ..lora.weights import Active
from ..memory.budget import Budget, chosen
from ..memory.device import DeviceMemory
from ..memory.plans import MemoryPlan
from ..networks.positions import check_positions
from ..prediction import TimeTable, time_table
from ..runtime.executor import GraphExecutor
from ..sampling import Stepper
from ..shortcuts import Loop, Step, all_exact, plan_steps, summary
from ..video import Stats
from .clock import Clock
from .holder import Holder
from .request import Request
from .resume import RunFile, Snapshot, states
from .settings import stats_of

LOG = logging.getLogger("consisid.run")
TILED = ("tiled", "exact")  # ways to decode that a plan may choose the tile of


class Run(Holder):
    """Made when the call comes in, with the LoRAs and the scheduler that the engine has then; begun when it is the
    call's turn at the device. It lasts until its video is made, or where that is read as a stream, until the last frame
    is read or the stream closed.

    Args:
        view: what the caller's callback gets as its pipeline; by default the engine with the state of this run.
        memory: what of the device it may use.

    Attributes:
        progress: called after each denoising step with its index.
        look: called after each denoising step with its index and latents [b, F, 16, h, w].
        table: computes the adaptive norms of every step.
        apart, decides: as denoise takes them.
        scheduler: its own copy.
        guidance_scale: the weight of the prompt at the present step.
        num_timesteps: steps of its schedule.
        attention_kwargs: the caller's, as callbacks read them.
        plan: of the memory; None without a budget.
        restarts: how often it ran out of memory.
    """

    def __init__(self, engine: Engine, request: Request, view: Any = None, memory: Budget = "engine"):
        super().__init__(engine)
        self.view, self.memory = view, memory
        self.progress: Callable[[int], None] = lambda step: None
        self.look: Callable[[int, Tensor], None] = lambda step, latents: None
        self.apart = False
        self.table: Callable[[GraphExecutor, Tensor], TimeTable] = time_table
        self.request, self.options = request, request.options
        self.loras: Active = engine.scaled_loras(self.options.lora_scale)
        self._given_scheduler = copy.deepcopy(engine.scheduler)
        self.scheduler = self._given_scheduler
        self.guidance_scale = float(self.options.guidance_scale)
        self.num_timesteps = self.restarts = self.step = 0
        self.attention_kwargs = self.options.attention_kwargs
        self._streams: frozenset[Hashable] = frozenset()
        self._written = 0  # finished steps in the file
        self._complete = True

    def open(self) -> None:
        """At the run's turn, once: what was finished before, and the plan.

        Raises:
            InputError: a checkpoint file that is none; MemoryBudgetError: the budget is too small.
        """
        engine, given = self.engine, self.request.generator
        self.generators = given if isinstance(given, list) else [given]
        self.start = states(self.generators)
        self.file = RunFile(self.options.checkpoint)
        self.snapshot = self.file.read(engine.device, self.start)
        if self.snapshot is not None:
            self.start, self._written = self.snapshot.start, self.snapshot.loop.steps
        self.networks = engine.networks(self.request.shape).counted()
        check_positions(engine.variant.transformer, self.request.shape)
        self._planned = self.stepper_of(copy.deepcopy(self._given_scheduler)).timesteps
        self.loop_steps = self.steps_of(self._planned)
        if self.owner is self:
            self.plan = None if self.budget is None else plan_of(self, self.budget, self.cfg_asked)
        LOG.debug("%s", self.plan or "without a budget")
        self.before = DeviceMemory.now(engine.device)

    @property
    def budget(self) -> int | None:
        """Bytes of device memory, None for no limit."""
        return chosen(self.memory, self.engine.memory)

    @property
    def cfg_asked(self) -> str | None:
        """The guidance mode that has to be: the caller's, or that of the steps that are finished."""
        return self.options.cfg or (self.snapshot.cfg if self.snapshot else None)

    @property
    def cfg(self) -> str:
        return self.plan.cfg if self.plan is not None else self.cfg_asked or "batched"

    @property
    def loop(self) -> GraphExecutor:
        """What the denoising loop calls: blocks as the plan has them."""
        networks, shape, rows = self.networks, self.request.shape, 1 if self.plan is None else self.plan.rows
        if rows > 1:
            networks = self.engine.in_ff_chunks(networks, shape, rows)
        return self.engine.loop_of(networks, shape, self.owner)

    @property
    def decoding(self) -> tuple[str | None, Tile | None]:
        """How the latents are decoded: as the caller says, else in the tiles of the plan, else whole."""
        mode, tile = self.options.decode, self.options.tile
        planned = None if self.plan is None else self.plan.tile
        if mode is None and planned is not None:
            return "tiled", planned
        return mode, tile or planned if mode in TILED else tile

    @property
    def image_tile(self) -> Tile | None:
        """What images are encoded in: tiles only where all has to be as diffusers has it after enable_tiling()."""
        mode, tile = self.decoding
        return check_tile(tile, self.engine.variant.vae) if mode == "tiled-reference" else None

    def steps_at(self, timesteps: Tensor) -> Sequence[Step]:
        """What each step does: everything, where the schedule is another than was planned for."""
        return self.loop_steps if timesteps.tolist() == self._planned.tolist() else all_exact(timesteps)

    @property
    def loop_costs(self) -> Loop | None:
        """What a loop that leaves something out takes; None for one that does not."""
        return Loop.of(self.loop_steps, self.request.guided)

    def begin(self) -> None:
        """At the start of every attempt: the device, with the weights of this run, and its state as it was given."""
        self.scheduler = copy.deepcopy(self._given_scheduler)
        self.guidance_scale = float(self.options.guidance_scale)
        for generator, state in zip(self.generators, self.start, strict=True):
            generator.set_state(state)
        if self.owner is self:
            self.engine.hand_over(None)
        elif self.engine.active is self.owner:
            self.owner.suspend()  # the clock counts anew
        self.networks.calls.clear()
        self.clock = Clock(self.engine.device)
        self.copied, self.peaks, self.stalls, self.mark = 0, dict[str, int](), [0.0], self.engine.weights.copied
        self.loop_stalls: list[float] = []
        self.decides = first_block_of(self.options.left_out.first_block, self.loop_steps)
        self.enter()
        self.engine.announce(self.request.shape, self)

    def stepper(self) -> Stepper:
        """The steps of the run's scheduler."""
        stepper = self.stepper_of(self.scheduler)
        self.num_timesteps = len(stepper.timesteps)
        return stepper

    def stepper_of(self, scheduler: Any) -> Stepper:
        """The steps of the request by a scheduler, which is set to them."""
        options = self.options
        return Stepper(scheduler, options.num_inference_steps, options.eta, self.request.generator, options.schedule)

    def steps_of(self, timesteps: Tensor) -> Sequence[Step]:
        """What each step does, with the LoRAs of the run."""
        shortcuts, engine = self.options.left_out, self.engine
        if not shortcuts.names:
            return all_exact(timesteps)
        embeddings = time_embeddings(engine.checkpoint, engine.variant.transformer, timesteps, self.loras)
        steps = plan_steps(shortcuts, embeddings, self.request.guided)
        for line in summary(shortcuts, steps, self.request.guided):
            LOG.info("approximation: %s", line)
        return steps

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of the run, timed."""
        self.stage_name, copy_stream = name, self.engine.weights.copy_stream
        self.engine.weights.tidy()
        LOG.info("%s: %s", name, self.request.shape)
        if name == "denoise" and self.owner is self:
            copy_stream.stalls()
            self.stalls = [0.0]
        with self.clock.stage(name):
            yield
        if name == "denoise":
            self.owner.suspend()
            self.loop_stalls = self.stalls[:-1] if self.owner is self else []

    def guidance(self, step: int, timestep: float) -> float:
        """The weight of the prompt at a step; see denoise.guidance_weight."""
        options = self.options
        if options.use_dynamic_cfg:
            self.guidance_scale = guidance_weight(
                options.guidance_scale, options.use_dynamic_cfg, step, timestep, options.num_inference_steps
            )
        return self.guidance_scale

    def watch(self, step: int, latents: Tensor) -> None:
        """After each denoising step."""
        self.step = step + 1
        self.progress(step)
        self.look(step, latents)
        if self.owner is self:
            self.engine.weights.copy_stream.border()
        self.clock.step()

    def resume(self, *conditions: Any) -> LoopState | None:
        """Where the loop goes on, None at its beginning.

        Args:
            conditions: all that the latents depend on besides the caller's options; the same in every attempt.

        Raises:
            InputError: the checkpoint is of another request.
        """
        self.file.check(self.engine.manifest.spec.key, self.loras, self.scheduler, self.options, conditions)
        if self.snapshot is None:
            return None
        self.guidance_scale = self.snapshot.guidance
        for generator, state in zip(self.generators, self.snapshot.now, strict=True):
            generator.set_state(state)
        return self.snapshot.loop

    def keep(self, loop: LoopState) -> None:
        """Remember finished steps, where somebody may ask for them."""
        if self.file.path is not None and not bool(loop.latents.isfinite().all()):
            raise not_finite(loop.steps, self.options.num_inference_steps)  # nobody could go on from it
        self.snapshot = Snapshot(loop, self.cfg, self.guidance_scale, self.start, states(self.generators))
        # Not every step can be gone on from, see shortcuts.may_go_on.
        if loop.steps // self.options.checkpoint_every > self._written // self.options.checkpoint_every:
            self._written = loop.steps
            self.file.write(self.snapshot)

    @property
    def looping(self) -> dict[str, Any]:
        """How its loop goes, as denoise takes it."""
        remembers = self.file.path is not None or self.options.on_oom == "replan"
        return {
            "cfg": self.cfg, "guidance": self.guidance, "watch": self.watch, "stop": self.stopping,
            "keep": self.keep if remembers else None, "what": self.steps_at, "table": self.table, "apart": self.apart,
            "decides": self.decides,
        }  # fmt: skip

    def stats(self) -> Stats:
        """Times and peaks of the run, its last attempt where there were several."""
        if self.engine.active is self.owner:
            self.owner.suspend()
        return stats_of(self, self.clock)

    def stream(self, streams: Collection[Hashable]) -> None:
        """The run lasts until each of these has ended."""
        self._streams = frozenset(streams)

    @property
    def streaming(self) -> bool:
        """Whether frames are still to be read."""
        return bool(self._streams)

    def ended(self, stream: Hashable | None, complete: bool) -> None:
        """A stream, or without streams the run, has ended; the last one gives the device back.

        Args:
            complete: all was made and handed out: nobody has to go on from the checkpoint.
        """
        self._streams = self._streams - {stream} if stream is not None else frozenset()
        self._complete = self._complete and complete
        if self._streams:
            return
        if self._complete:
            self.file.remove()
        if self.engine.active is self.owner:
            if self._complete:
                self.owner.suspend()  # what the last frames took; a stream's stats are asked for afterwards
            if self.owner.leave(self):
                self.engine.give_back()
        else:
            self.owner.leave(self)


def plan_of(run: Run, budget: int | None, cfg: str | None, steps: int = 0, beside: int = 1) -> MemoryPlan:
    """The plan for a run within a budget in bytes, None for no limit; see Engine.plan.

    Args:
        steps: of the longest, beside: number of such runs that go through the weights together.
    """
    request = run.request
    return run.engine.plan(
        budget, shape=request.shape, batch=request.batch, steps=max(steps, request.options.num_inference_steps),
        guided=request.guided, cfg=cfg, tiling=request.may_tile, loop=run.loop_costs, beside=beside,
    )  # fmt: skip
