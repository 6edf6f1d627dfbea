"""One call of generate: its plan, its clock, what it has finished, and what happens when memory runs out."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from consisid.kernels import describe

from . import memory
from .denoise import LoopState, not_finite
from .device import current
from .device_memory import DeviceMemory, OutOfMemory, explain, first_line
from .errors import DeviceMemoryError, InputError, WriteError
from .frame_stream import FrameStream
from .lora import key_of
from .memory import show
from .request import Request, may_tile
from .runtime import Networks
from .snapshots import Snapshot, fingerprint, scheduler_key, states
from .stats import Clock, Stats
from .tiling import Tile, check_tile

if TYPE_CHECKING:
    from .opening import Opened

TILED = ("tiled", "exact")  # ways to decode that a plan may choose the tile of


class Run:
    """Made by `guarded`. `networks`, `clock` and `cfg` are what the stages of generate use.

    It lasts until `make` returns, or where that returned streams, until the last of them is read or closed.
    """

    def __init__(self, engine: "Opened", request: Request):
        self.engine, self.request = engine, request
        self.options, self.loras = request.options, engine.loras
        self.networks = engine.networks(request.shape)
        given = request.generator
        self.generators = given if isinstance(given, list) else [given]
        self.start = states(self.generators)
        self.snapshot: Snapshot | None = None
        self.restarts, self._fingerprint, self._expected = 0, "", ""
        self.path = None if self.options["checkpoint"] is None else Path(self.options["checkpoint"])
        if self.path is not None and self.path.exists():
            self.snapshot, self._expected = Snapshot.load(self.path, engine.device, self.start)
            self.start = self.snapshot.start
        self.plan = engine.plan_of(request, self.cfg_asked) if engine.memory is not None else None
        self.before = DeviceMemory.now(engine.device)
        self.stage_name, self.step = "identify", 0
        self._streams: set[FrameStream] = set()
        self._complete = True

    @property
    def cfg_asked(self) -> str | None:
        """The guidance mode that has to be: the caller's, or that of the steps that are finished."""
        return self.options["cfg"] or (self.snapshot.cfg if self.snapshot else None)

    @property
    def cfg(self) -> str:
        return self.plan.cfg if self.plan is not None else self.cfg_asked or "batched"

    @property
    def loop(self) -> Networks:
        """What the denoising loop calls: blocks as the plan has them."""
        if self.plan is None or self.plan.rows == 1:
            return self.networks
        return self.engine.in_rows(self.request.shape, self.plan.rows)

    @property
    def decoding(self) -> tuple[str | None, Tile | None]:
        """How the latents are decoded: as the caller says, else in the tiles of the plan, else whole."""
        mode, tile = self.options["decode"], self.options["tile"]
        planned = None if self.plan is None else self.plan.tile
        if mode is None and planned is not None:
            return "tiled", planned
        return mode, tile or planned if mode in TILED else tile

    @property
    def image_tile(self) -> Tile | None:
        """What images are encoded in: tiles only where all has to be as diffusers has it after enable_tiling()."""
        mode, tile = self.decoding
        return check_tile(tile, self.engine.variant.vae) if mode == "tiled-reference" else None

    @property
    def modes(self) -> dict[str, str]:
        """What was chosen, for stats."""
        modes = {"cfg": self.cfg, "dtype": self.engine.manifest.spec.dtype, "device": str(self.engine.device)}
        modes["attention"] = describe(self.engine.device, _keys_shape(self.engine, self.request), self.engine.dtype)
        modes["graphs"] = "none" if self.engine.weights.captures is None else "block"
        if self.decoding[0] not in (None, "whole"):
            modes["decode"] = " ".join(str(part) for part in self.decoding if part is not None)
        if self.plan is not None:
            modes["memory"] = self.plan.mode
            if self.plan.rows > 1:
                modes["rows"] = f"feed-forward in {self.plan.rows} pieces"
        if self.loras:
            modes["lora"] = ", ".join(f"{len(lora.changes)} tensors at {weight:g}" for lora, weight in self.loras)
        if self.restarts:
            modes["restarts"] = f"{self.restarts} after running out of memory"
        if self.engine.weights.source:
            modes["weights from"] = self.engine.weights.source
        return modes

    def begin(self) -> None:
        """At the start of every attempt: the device with the weights of this run, and its clock."""
        self.enter()
        self.engine.weights.adapt(self.loras)
        for generator, state in zip(self.generators, self.start, strict=True):
            generator.set_state(state)
        self.clock = Clock(self.engine.device, self.networks.calls)
        self._copied = self.engine.weights.copied
        self.engine.weights.peaks.clear()
        self._stalls: list[float] = []

    def enter(self) -> None:
        """The device is this run's from now on, as its plan says."""
        self.engine.weights.use(self.plan)
        plan = self.plan
        self.engine.share.begin(None if plan is None or plan.budget is None else plan.budget - plan.context)

    def attempt(self, work: Callable[[], Any], again: Callable[[], None] = lambda: None) -> Any:
        """What `work` gives; after running out of memory `again` prepares the next attempt, under a smaller plan.

        Raises:
            DeviceMemoryError: there is no smaller plan, or the request does not want one.
        """
        while True:
            ran_out = OutOfMemory(self.engine.device)
            try:
                return work()
            except RuntimeError as error:
                if not ran_out.is_it(error):
                    raise
                message = first_line(error)
            # Here the traceback, and with it the tensors of the attempt, are gone.
            self.out_of_memory(message)
            again()

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
            what = (self.engine.manifest.spec.key, key_of(self.loras), scheduler_key(self.engine.scheduler))
            self._fingerprint = fingerprint(*what, *chosen, *conditions)
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
        if self.path is not None and not bool(loop.latents.isfinite().all()):
            raise not_finite(loop.steps, self.options["num_inference_steps"])  # nobody could go on from it
        self.snapshot = Snapshot(loop, self.cfg, self.start, states(self.generators))
        if self.path is not None and loop.steps % self.options["checkpoint_every"] == 0:
            try:
                self.snapshot.save(self.path, self._fingerprint)
            except WriteError as error:  # the video is worth more than what would help if it were lost
                warnings.warn(f"{error} The run goes on without this checkpoint.", stacklevel=2)

    def out_of_memory(self, message: str) -> None:
        """Turn to the next smaller plan, or say what would do.

        Raises:
            DeviceMemoryError: the plan, the stage and the next smaller plan.
        """
        engine, after = self.engine, DeviceMemory.now(self.engine.device)
        current = self.plan or engine.plan_of(self.request, self.cfg, unlimited=True)
        reason = explain(current, self.before, after)
        self._release()
        # The steps that are finished fix the mode; before the first any will do, unless the caller chose.
        following = memory.smaller(
            current, engine.sizes_of(self.request), cfg=self.cfg_asked, tiling=may_tile(self.request)
        )
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

    def stats(self) -> Stats:
        """Times and peaks of the run, its last attempt where there were several."""
        stats = self.clock.stats(self.modes)
        stats.streamed_bytes = self.engine.weights.copied - self._copied
        stats.stalls = self._stalls
        self.engine.weights.note_peak()
        others, peaks = self.engine.share.others, self.engine.weights.peaks
        stats.peak_bytes = max(stats.peak_bytes, *peaks.values(), 0) - others
        stats.stage_bytes = {name: peak - others for name, peak in peaks.items()}
        stats.predicted_bytes = self.plan.reserved if self.plan is not None else None
        return stats

    def decoded(self, decode: Callable[[], Any]) -> Any:
        """What `decode` gives, frames per video; iterators become parts of this run.

        After running out of memory these go on as the next smaller plan says, behind the frames that were read.
        """
        if self.options["output_type"] != "stream":
            return decode()
        found = [FrameStream(self, partial(_entry, decode, index)) for index in range(self.request.batch)]
        self._streams = set(found)
        return found

    @property
    def streaming(self) -> bool:
        """Whether frames are still to be read."""
        return bool(self._streams)

    def ended(self, stream: FrameStream | None, complete: bool) -> None:
        """A stream, or without streams the run, has ended; the last one gives the device back.

        Args:
            complete: all was made and handed out: nobody has to go on from the checkpoint.
        """
        self._streams = self._streams - {stream} if stream is not None else set()
        self._complete = self._complete and complete
        if self._streams:
            return
        if self._complete and self.path is not None:
            self.path.unlink(missing_ok=True)
        self.engine.weights.leave()
        self.engine.share.end()

    def _release(self) -> None:
        self.engine.weights.leave()
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()


def _entry(decode: Callable[[], Any], index: int) -> Iterator[Any]:
    return decode()[index]


def _keys_shape(engine: "Opened", request: Request) -> tuple[int, int, int, int]:
    """Of the joint attention's keys: [B, S, H, D]."""
    t = engine.variant.transformer
    tokens = t.max_text_seq_length + request.shape.video_tokens
    return request.batch, tokens, t.num_attention_heads, t.attention_head_dim


def guarded(engine: "Opened", request: Request, make: Callable[[Run], Any]) -> Any:
    """Run `make`, again with a smaller plan after running out of memory where the request says so.

    Raises:
        MemoryBudgetError: the engine's budget is too small for this request; nothing was loaded.
        DeviceMemoryError: out of memory.
    """
    with current(engine.device):
        run, made = Run(engine, request), None

        def work() -> Any:
            run.begin()
            return make(run)

        try:
            made = run.attempt(work)
        except BaseException:
            run.ended(None, complete=False)
            raise
        if not run.streaming:
            run.ended(None, complete=True)
        return made
