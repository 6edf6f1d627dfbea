"""Opening an engine folder: verify it, load its graphs and bind its weights."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from .backends import backend
from .checkpoint.reading import Checkpoint
from .conditioning import Conditioner
from .decode.frames import MODES, Modes
from .errors import EngineError, InputError
from .face.extractor import Faces
from .graphs.graph import Graph, in_ff_chunks
from .lora.mixin import Adapters
from .manifest import DTYPES, Manifest, open_checkpoint
from .memory.budget import check_mode, parse
from .memory.costs import Costs, video_costs
from .memory.device import DeviceShare, device_memory_free
from .memory.planner import plan
from .memory.plans import MemoryPlan
from .memory.simulate import machine_named
from .runtime.cuda_graphs import Captures
from .runtime.executor import GraphExecutor, executor
from .sampling import load_scheduler
from .shapes import VideoShape
from .shortcuts import Loop
from .text import TextEncoder
from .util.device import check_device, current
from .util.files import as_path
from .util.turns import Occupant, turn_of
from .weights.baked import BakedWeights
from .weights.copy_stream import copy_stream_of
from .weights.manager import WeightManager

# Samples, steps and the pixels of a photo, where a graph leaves them open: those of an ordinary run.
WARM_UP_SIZES = {"B": 2, "N": 50, "H": 640, "W": 640}


class Engine(Adapters):
    """An open engine folder. `ConsisID` adds what it can do.

    Attributes:
        manifest: what the folder is.
        variant: the model.
        shape: the video that it was built for.
        device, dtype: where and in what it runs.
        mesh: how several devices share a video, None for one.
        scheduler: a diffusers scheduler, of which every run gets a copy; another can be put in its place.
        memory: the budget in bytes of device memory, None for no limit.
        weights: where they are.
        active: the run that has the device at present, or that last computed a frame of a stream.
        process: in which the engine was opened, and in no other can be used.
        warmed: seconds that each graph took when the engine was warmed up, empty when it was not.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, device: torch.device, memory: int | str | None = None,
        captures: Captures | None = None, checkpoint: Checkpoint | None = None, mesh: Any = None,
    ):  # fmt: skip
        super().__init__()
        self.folder, self.manifest, self.device, self.mesh = folder, manifest, device, mesh
        self.variant, self.shape = manifest.spec.variant, manifest.spec.shape
        self.dtype = DTYPES[manifest.spec.dtype]
        self.checkpoint = checkpoint if checkpoint is not None else open_checkpoint(folder, manifest)
        kind = BakedWeights if manifest.spec.layers_per_shard else WeightManager
        self.weights: WeightManager = kind(self.checkpoint, device, self.dtype, copy_stream_of(device))
        self.weights.captures = captures
        self.share = DeviceShare(device)
        self.memory = parse(memory, device_memory_free(device))
        plan = None if self.memory is None else self.plan(self.memory)
        self.weights.use(plan)
        self.active: Occupant | None = None
        self.process = os.getpid()
        self.warmed: Mapping[str, float] = {}
        self._networks: dict[VideoShape, GraphExecutor] = {}
        self.share.begin(None if plan is None or plan.budget is None else plan.budget - plan.context)
        try:
            self.networks(self.shape)
        finally:
            self.share.end()

    @classmethod
    def open(
        cls, folder: str | Path, device: str | torch.device | None = None, *, memory: int | str | None = None,
        verify: bool = False, warm_up: bool = False, cuda_graphs: bool = False, mesh: Any = None,
    ) -> Self:  # fmt: skip
        """Open an engine folder that consisid-build made.

        Args:
            folder: the engine folder.
            device: where it runs; default where it was built for.
            memory: how much of the device may be used: bytes, "8GiB", "auto" for what is free less a margin
                (memory.MARGIN), or None for no limit, with everything resident.
            verify: read and hash the weights too, not only what is executed.
            warm_up: run every graph once, so that the first video does not pay for what loads late; `warmed` says
                what that took.
            cuda_graphs: launch each call of the denoising loop as one CUDA graph, recorded at its second call. What
                the recordings hold (see runtime/cuda_graphs.py) is in no plan of the memory.
            mesh: of several devices, for plans; see parallel.devices, which also opens the others.

        Raises:
            InputError: CUDA graphs on a device that is no CUDA GPU.
            EngineError: a folder that is no engine, or stale, foreign, damaged or unfinished.
            MemoryBudgetError: a budget that is too small; nothing was loaded.
        """
        folder = as_path(folder).absolute()  # the process may change its folder
        manifest = Manifest.read(folder)
        manifest.check_target(folder)
        place = check_device(manifest.spec.device if device is None else device)
        manifest.verify(folder, place, full=verify)
        if cuda_graphs and place.type != "cuda":
            raise InputError(f"cuda_graphs=True needs a CUDA GPU, and the device is {place}; leave it out.")
        with turn_of(place), current(place):
            engine = cls(folder, manifest, place, memory, Captures() if cuda_graphs else None, mesh=mesh)
            if warm_up:
                engine.warmed = engine.warm_up()
        return engine

    def plan(
        self, memory: int | str | None, *, shape: VideoShape | None = None, batch: int = 1, steps: int = 50,
        guided: bool = True, cfg: str | None = None, tiling: bool = True, loop: Loop | None = None, beside: int = 1,
    ) -> MemoryPlan:  # fmt: skip
        """What a run within a budget would hold on the device, and when; print it for a table.

        Args:
            memory: as for `open`.
            shape, batch, steps, guided: of the videos; the shape is by default that of the engine.
            cfg: a mode of guidance that was asked for.
            tiling: whether the decoder may be cut into tiles.
            loop: what a loop that leaves something out computes and keeps.
            beside: such runs at once, which go through the weights together; the seconds are those of all.

        Raises:
            InputError: a budget, number, shape or mode that is none.
            MemoryBudgetError: a budget that is too small; the message names the smallest.
        """
        budget = parse(memory, device_memory_free(self.device))
        sizes = self.costs(shape or self.shape, batch, steps, guided, loop, beside)
        machine = machine_named(self.manifest.provenance.get("gpu", ""))
        return plan(budget, sizes, machine, cfg=check_mode(cfg), tiling=tiling)

    def costs(
        self, shape: VideoShape, batch: int, steps: int, guided: bool, loop: Loop | None = None, beside: int = 1
    ) -> Costs:
        """What the plan of such videos is made from."""
        return video_costs(
            self.variant, shape, self.dtype, batch=batch, steps=steps, guided=guided, device=self.device.type,
            rows=self.may_cut_rows, parts=self.parts, loop=loop, beside=beside,
        )  # fmt: skip

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside the block the device is this thread's alone; whoever comes while it is not waits, in order. Inference
        mode, which a caller may be in, is left: its tensors could not be changed by a later run that is not in it.

        Raises:
            EngineError: in a process that was forked from the one which opened the engine.
        """
        if os.getpid() != self.process:
            raise EngineError(
                f"The engine of {self.folder} was opened in another process ({self.process}), and a fork of it cannot "
                "use it; open the folder in this process, or start it by spawn."
            )
        with turn_of(self.device), current(self.device), torch.inference_mode(False), torch.no_grad():
            yield

    def hand_over(self, run: Occupant | None) -> bool:
        """The weights on the device and the limit of its memory are another run's now; whether they were not before."""
        if self.active is run:
            return False
        if self.active is not None:
            self.active.suspend()
        self.active = run
        return True

    def give_back(self) -> None:
        """Nobody computes here now: weights that are not to stay leave the device, and its limit is what it was."""
        self.active = None
        self.weights.evict()
        self.share.end()

    @property
    def _interrupt(self) -> bool:
        """As in diffusers: True ends the loop of the present run after its step, set from any thread."""
        return self.active is not None and self.active.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        if self.active is not None:
            self.active.interrupt = bool(value)

    @property
    def parts(self) -> frozenset[str] | None:
        """The parts of the checkpoint that the engine has; None for all."""
        return None

    @property
    def may_cut_rows(self) -> bool:
        """Whether a plan may cut the feed-forward: not where engines hold the weights of their layers."""
        return not self.manifest.spec.layers_per_shard

    def networks(self, shape: VideoShape | None = None) -> GraphExecutor:
        """The graphs for a shape; compiled ones exist only for the shape that they were built for."""
        shape = shape or self.shape
        if shape not in self._networks:
            self._networks[shape] = self._load(shape)
        return self._networks[shape]

    def _load(self, shape: VideoShape) -> GraphExecutor:
        entries = self.manifest.graphs
        if shape != self.shape and any(entry.file for entry in entries.values()):
            flags = f"--height {shape.height} --width {shape.width} --num-frames {shape.num_frames}"
            raise EngineError(
                f"{self.folder} was built for {self.shape} and makes no other video; build another folder with "
                f"consisid-build {flags} for {shape}."
            )
        runners, captures = {}, self.weights.captures
        for name, graph in self.manifest.spec.graphs(shape).items():
            if not self.wants(graph):
                continue
            entry = entries.get(name)
            names = entry.weights if entry else list(graph.weights)
            module = backend(entry.backend if entry else "eager")
            file = self.folder / entry.file if entry and entry.file else None
            run = module.load(graph, file, self.device, names)
            runners[name] = captures.wrap(graph, run) if captures is not None else run
            self.weights.bind(graph, names)
            if isinstance(self.weights, BakedWeights):
                self.weights.hold(name, run)
        count = self.manifest.spec.layers_per_shard
        return executor(self.variant, runners, self.weights, self.device, self.dtype, count)

    def in_ff_chunks(self, networks: GraphExecutor, shape: VideoShape, rows: int) -> GraphExecutor:
        """The graphs for a shape with the feed-forward of their blocks in pieces: operator by operator, under the
        engine's weights, whatever its backend."""
        entries, runners = self.manifest.graphs, dict(networks.runners)
        for name, graph in self.manifest.spec.graphs(shape).items():
            if graph.chunked:
                names = entries[name].weights if name in entries else list(graph.weights)
                runners[name] = backend("eager").load(in_ff_chunks(graph, rows), None, self.device, names)
        return networks.under(runners)

    def loop_of(self, networks: GraphExecutor, shape: VideoShape, holder: Any) -> GraphExecutor:
        """What the denoising loop of a holder calls, given the graphs for its shape and plan."""
        return networks

    def announce(self, shape: VideoShape, holder: Any) -> None:
        """A holder has the device, and its loop will come."""

    def decoders(self, shape: VideoShape, holder: Any) -> Modes:
        """The ways in which the latents of a holder become frames."""
        return MODES

    def wants(self, graph: Graph) -> bool:
        """Whether a graph is loaded."""
        return self.checkpoint.has_part(graph.part)

    @torch.no_grad()
    def warm_up(self) -> dict[str, float]:
        """Run every graph once on random inputs; the seconds that each took, by name."""
        networks, graphs, seconds = self.networks(), self.manifest.spec.graphs(), {}
        for name in networks.runners:
            dtype, specs = graphs[name].dtype(self.dtype), graphs[name].specs()
            with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not ours to draw
                inputs = [spec.example(WARM_UP_SIZES, dtype, self.device) for spec in specs.values()]
            start = time.perf_counter()
            networks(name, *inputs)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds[name] = time.perf_counter() - start
        self.weights.evict()
        return seconds

    @cached_property
    def conditioner(self) -> Conditioner:
        """What is computed before the loop, and kept for the next video."""
        return Conditioner(self.checkpoint, self.variant)

    @property
    def text_encoder(self) -> TextEncoder:
        return self.conditioner.text_encoder

    @cached_property
    def scheduler(self) -> Any:
        return load_scheduler(self.checkpoint.path / "scheduler")

    @cached_property
    def faces(self) -> Faces:
        return Faces(self.networks(), self.checkpoint, self.manifest)

    def release_faces(self) -> None:
        """The face detectors leave a GPU; they are no part of the loop."""
        if self.device.type == "cuda" and "faces" in vars(self):
            self.faces.release()
