"""A report of an engine: everything measured in one process, in turns with diffusers, and written only if it holds."""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from consisid.engine import ConsisID
from consisid.engine.checkpoint.random_weights import PREFIX
from consisid.engine.errors import ConsisIDError, DeviceMemoryError, InputError, MemoryBudgetError
from consisid.engine.manifest import Manifest
from consisid.engine.util.device import check_device
from consisid.engine.util.files import atomic_file

from ..core import peak_rates as ceilings
from ..core.ablation import rungs
from ..core.baselines import EAGER, PEERS, Peer, PeerError, Theirs
from ..core.environment import memory_bytes, stamp
from ..core.inputs import identity
from ..core.nvml import Watch, load_nvml
from ..core.random_folder import random_folder
from ..core.samples import Maker, Ours, Resident, Row, Sample, alternate
from ..core.timing import seconds_of
from . import budgets, checks, latency, memory, parity
from . import roofline as rates
from .sections import peer_row, rows, waterfall

SCHEMA = 4
PULSE = 0.05  # seconds
MOST_RUNS, MOST_THREADS = 1000, 1024
Pair = tuple[list[Sample], list[Sample]]
"""Samples of a peer, and of the engine in the same turns."""
# Why a part of a report may be missing: no package, no memory for two pipelines or within a budget, a peer that does
# not run. Anything else is an error of this engine or of this command, and ends it.
MISSING = (ImportError, torch.OutOfMemoryError, DeviceMemoryError, MemoryBudgetError, PeerError)


@dataclass(frozen=True)
class Options:
    """What the command was asked for.

    engine: a folder, or with random_weights the name of a variant, compiled by `backend`. memory: a budget, as
    ConsisID.open takes it.
    """

    engine: str
    steps: int = 10
    runs: int = 3
    random_weights: bool = False
    backend: str = "eager"
    device: str | None = None
    compiled: bool = False
    peers: bool = True
    threads: int | None = None
    memory: str | None = None


@dataclass
class Bench:
    """A report in the making."""

    options: Options
    rows: list[Row] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)

    def skip(self, what: str, because: str) -> None:
        self.missing.append({"what": what, "because": because})

    def attempt(self, what: str, work: Callable[[], Any]) -> Any:
        """What a part returns, or None and a line under "not measured" where it cannot run here."""
        try:
            return work()
        except MISSING as error:
            first = (str(error).strip().splitlines() or [""])[0][:300]
            self.skip(what, first if isinstance(error, ConsisIDError) else f"{type(error).__name__}: {first}")
            return None
        finally:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    @property
    def peers(self) -> bool:
        return self.options.peers

    @contextmanager
    def folder(self, place: torch.device) -> Iterator[Path]:
        """The engine folder, or one with random weights that is there for the length of the block."""
        if not self.options.random_weights:
            yield Path(self.options.engine)
            return
        with random_folder(self.options.engine, place, backend=self.options.backend) as folder:
            yield folder


def place_of(options: Options) -> torch.device:
    """Where the engine will run, without opening it."""
    if options.device is not None:
        return check_device(options.device)
    if options.random_weights:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return check_device(Manifest.read(Path(options.engine)).spec.device)


def guard(nvml: Any, place: torch.device) -> Watch | None:
    """A watch on the GPU, made before CUDA wakes; None on a CPU or without NVML.

    Raises:
        RefusedError: another process holds the GPU.
    """
    if nvml is None or place.type != "cuda":
        return None
    watch = Watch.of(nvml, place.index)
    checks.check_alone(watch.others())
    return watch


def describe(engine: ConsisID) -> dict[str, Any]:
    spec = engine.manifest.spec
    return {
        "variant": spec.variant.name, "shape": str(spec.shape), "dtype": spec.dtype, "backend": spec.backend,
        "random_weights": spec.checkpoint.startswith(PREFIX) or spec.variant.name == "tiny",
    }  # fmt: skip


def measure_engine(options: Options, nvml: Any = None) -> dict[str, Any]:
    """Measure an engine.

    Args:
        nvml: an NVML to ask instead of the machine's own.

    Raises:
        RefusedError: the GPU was throttled, shared, or not in one state.
        InputError, EngineError: what cannot be opened or asked for.
    """
    if options.runs < 1 or options.steps < 2:
        raise InputError(f"--runs {options.runs} has to be at least 1 and --steps {options.steps} at least 2.")
    if options.runs > MOST_RUNS:
        raise InputError(f"--runs {options.runs} may be at most {MOST_RUNS}.")
    if options.threads is not None and not 1 <= options.threads <= MOST_THREADS:
        raise InputError(f"--threads {options.threads} has to be from 1 to {MOST_THREADS}.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    b = Bench(options)
    place = place_of(options)
    reason: str | None = "the engine runs on a CPU"
    if nvml is None and place.type == "cuda":
        nvml, reason = load_nvml()
    watch = guard(nvml, place)
    with b.folder(place) as folder:
        opened: list[ConsisID] = []
        baseline, _ = memory.now(torch.device("cpu"))
        opening = seconds_of(
            lambda: opened.append(ConsisID.open(folder, options.device, memory=options.memory)), torch.device("cpu")
        )
        engine = opened[0]
        if watch is not None:
            watch.check_same(engine.device)
            watch.ours_is_here()
            with watch:
                return _measure(b, engine, opening, watch, baseline)
        b.skip("energy, clocks, temperature, throttling, other processes on the GPU", reason or "there is no NVML")
        return _measure(b, engine, opening, None, baseline)


def _measure(b: Bench, engine: ConsisID, opening: float, watch: Watch | None, baseline: int) -> dict[str, Any]:
    options, device = b.options, engine.device
    gpu = device.type == "cuda"
    measured = torch.bfloat16 if gpu else engine.dtype
    made = stamp(device, watch.driver if watch is not None else None)  # now: sources may be edited during a long run
    resident = Resident(device)
    resident.held["ours"] = memory.now(device)[0] if gpu else 0
    ours = Ours(engine, identity(engine.variant), options.steps)
    first = ours(0).total
    solo, timeline = _alone(engine, ours, watch, baseline)
    start = ceilings.measure(device, measured)
    felt = latency.Latency(engine, ours)
    speeds: dict[str, list[float]] = {"ours": []}  # of the machine, by whose turns

    def pulse(name: str) -> None:
        speeds.setdefault(name, []).append(ceilings.product(device, measured, PULSE))

    def after() -> None:
        felt()
        pulse("ours")

    samples = _beside_us(b, engine, ours, resident, after)
    within = _within(b, engine, ours, resident) if b.peers else {}
    tables = []
    everything = [sample.total for sample in samples["ours"]]
    for index, peer in enumerate(PEERS if b.peers else ()):
        if peer is EAGER:
            found: Pair | None = (samples[peer.name], samples["ours"]) if peer.name in samples else None
        else:
            found = _beside(b, engine, ours, peer, resident, 100 * index, partial(pulse, peer.name))
        budget = within[peer.reference_gb[1]] if peer.reference_gb else None
        theirs, beside = found or (None, None)
        tables.append(peer_row(peer, theirs, beside, budget))
        if found and peer is not EAGER:
            samples[peer.name] = found[0]
            everything += [sample.total for sample in found[1]]
    steady = Row.of("video", "ours, all turns", "s", everything, "beside every peer: how steady the machine was")
    speeds[steady.name] = [speed for turns in speeds.values() for speed in turns]
    b.rows += [*rows(samples), steady]
    b.rows += [
        Row.of("machine", name, "TFLOP/s", found, "product of matrices after each turn")
        for name, found in speeds.items()
    ]
    b.rows += felt.rows(opening, first)
    b.rows += rates.rows(engine)
    compared = b.attempt("parity", lambda: parity.measure(engine, options.steps)) if b.peers else None
    end = ceilings.measure(device, measured)
    seen = None if watch is None else watch.seen
    stability = checks.verdict(start, end, gpu, seen)
    if not gpu:
        b.skip("memory of each peer by itself", "on a CPU all of them share one process; only its whole is seen")
    return {
        "schema": SCHEMA,
        "engine": describe(engine),
        "settings": {"steps": options.steps, "runs": options.runs, "memory": options.memory},
        "made": made,
        "machine": {"memory_bytes": memory_bytes(device), "torch_threads": torch.get_num_threads()},
        "ceilings": stability,
        "rows": [row.stamped(made) for row in b.rows],
        "waterfall": waterfall(samples),
        "rates": rates.achieved(engine, samples["ours"], start),
        "targets": rates.targets(engine, samples["ours"], start),
        "peers": tables,
        "memory": timeline,
        "energy": solo,
        "parity": compared,
        "watched": seen.summary() if seen is not None else None,
        "not_measured": b.missing,
    }


def _beside_us(
    b: Bench, engine: ConsisID, ours: Ours, resident: Resident, after: Callable[[], None]
) -> dict[str, list[Sample]]:
    """diffusers as it is, the engine rung by rung, and the engine, in turns; `after` each."""
    person, steps = ours.person, ours.steps
    makers: dict[str, Maker] = {**rungs(engine, person, steps), "ours": ours}
    if not b.peers:
        return alternate(makers, b.options.runs, resident, after=after)

    def work() -> dict[str, list[Sample]]:
        theirs = resident.loading(EAGER.name, lambda: Theirs(engine, person, steps, EAGER))
        return alternate({EAGER.name: theirs} | makers, b.options.runs, resident, after=after)

    found = b.attempt(EAGER.name, work)
    resident.held.pop(EAGER.name, None)
    return found or alternate(makers, b.options.runs, resident, after=after)


def _beside(
    b: Bench, engine: ConsisID, ours: Ours, peer: Peer, resident: Resident, first: int, after: Callable[[], None]
) -> Pair | None:
    """A peer and the engine in turns, `after` each; None with a line under "not measured" where it cannot run."""
    if peer.gpu and engine.device.type != "cuda":
        b.skip(peer.name, "it moves weights to a GPU and back, and there is none")
        return None
    if peer.slow and not b.options.compiled:
        b.skip(peer.name, "it was not asked for; --compiled takes minutes of compilation")
        return None

    def work() -> Pair:
        maker = resident.loading(peer.name, lambda: Theirs(engine, ours.person, ours.steps, peer))
        found = alternate({peer.name: maker, "ours": ours}, b.options.runs, resident, first, after)
        return found[peer.name], found["ours"]

    found = b.attempt(peer.name, work)
    resident.held.pop(peer.name, None)
    return found


def _within(b: Bench, engine: ConsisID, ours: Ours, resident: Resident) -> dict[float, dict[str, Any] | None]:
    """The engine within each budget that the reference's table states, by its reserved GB.

    By itself: a budget limits the whole process, so no peer may hold anything meanwhile.
    """
    found: dict[float, dict[str, Any] | None] = {}
    for gb in dict.fromkeys(budgets.stated()):
        budget, name = budgets.budget_for(engine, gb, ours.steps), f"ours within the stated {gb:g} GB"

        def work(budget: budgets.Budget = budget, name: str = name) -> dict[str, Any]:
            makers = {name: budgets.Within(ours, budget)}
            return budgets.row(budget, alternate(makers, b.options.runs, resident, first=300)[name])

        held = resident.held.pop("ours", 0)  # what is resident is the budget's business
        found[gb] = b.attempt(name, work)
        resident.held["ours"] = held
    return found


def _alone(
    engine: ConsisID, ours: Ours, watch: Watch | None, baseline: int
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """One video with memory sampled and, on a GPU, its energy, before any peer is loaded."""
    nested = None if watch is None else Watch(watch.nvml, watch.handle)
    with memory.Timeline(engine.device, baseline) as timeline:
        if nested is None:
            sample = ours(50)
        else:
            with nested:
                sample = ours(50)
    energy = None
    if nested is not None and nested.seen.joules is not None:
        energy = {"joules_per_video": nested.seen.joules, "steps": ours.steps, "seconds": sample.total}
    seen = timeline.to_dict(sample.stages)
    return energy, {**seen, "plan": memory.planned(engine, ours.steps, sample.stages)}


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write report.json, report.md and report.html; return their paths.

    Raises:
        InputError: matplotlib, which draws the plots, is not installed.
    """
    from .render import html, markdown

    contents = {
        "report.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
        "report.md": markdown(report),
        "report.html": html(report),
    }
    for name, content in contents.items():
        with atomic_file(folder / name) as aside:
            aside.write_text(content)
    return [folder / name for name in contents]
