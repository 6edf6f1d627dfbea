"""A report of an engine: everything measured in one process, in turns with diffusers, and written only if it holds."""

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from consisid.engine import ConsisID
from consisid.engine.errors import InputError
from consisid.engine.files import file_aside
from consisid.engine.manifest import Manifest
from consisid.engine.opening import check_device
from consisid.engine.variants import variant_named

from . import ceilings, checks, latency, memory, parity, rates
from .inputs import identity
from .machine import memory_bytes, stamp
from .nvml import Watch, Watched, load_nvml
from .peers import EAGER, PEERS, Peer, Theirs
from .random_engine import RandomEngine
from .rungs import Unhoisted
from .runs import Maker, Ours, Resident, Row, Sample, alternate
from .timing import seconds_of

SCHEMA = 2
UNHOISTED = "ours without hoisting"


@dataclass(frozen=True)
class Options:
    """What the command was asked for. engine: a folder, or with random_weights the name of a variant."""

    engine: str
    steps: int = 10
    runs: int = 3
    random_weights: bool = False
    device: str | None = None
    compiled: bool = False
    peers: bool = True
    threads: int | None = None


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
        except (ImportError, torch.cuda.OutOfMemoryError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            self.skip(what, f"{type(error).__name__}: {first[:200]}")
            return None
        finally:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    def open(self) -> ConsisID:
        options = self.options
        if not options.random_weights:
            return ConsisID.open(options.engine, options.device)
        device = place_of(options)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        return RandomEngine(variant_named(options.engine), device, dtype)


def place_of(options: Options) -> torch.device:
    """Where the engine will run, without opening it."""
    if options.device is not None:
        return check_device(options.device)
    if options.random_weights:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(Manifest.read(Path(options.engine)).spec.device)


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
        "random_weights": isinstance(engine, RandomEngine) or spec.variant.name == "tiny",
    }  # fmt: skip


def bench(options: Options, nvml: Any = None) -> dict[str, Any]:
    """Measure an engine.

    Args:
        nvml: an NVML to ask instead of the machine's own.

    Raises:
        RefusedError: the GPU was throttled, shared, or not in one state.
        InputError, EngineError: what cannot be opened or asked for.
    """
    if options.runs < 1 or options.steps < 2:
        raise InputError(f"--runs {options.runs} has to be at least 1 and --steps {options.steps} at least 2.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    b = Bench(options)
    place = place_of(options)
    reason: str | None = "the engine runs on a CPU"
    if nvml is None and place.type == "cuda":
        nvml, reason = load_nvml()
    watch = guard(nvml, place)
    opened: list[ConsisID] = []
    opening = seconds_of(lambda: opened.append(b.open()), torch.device("cpu"))
    engine = opened[0]
    if watch is not None:
        watch.check_same(engine.device)
        watch.ours_is_here()
        with watch:
            return _measure(b, engine, opening, watch)
    b.skip("energy, clocks, temperature, throttling, other processes on the GPU", reason or "there is no NVML")
    return _measure(b, engine, opening, None)


def _measure(b: Bench, engine: ConsisID, opening: float, watch: Watch | None) -> dict[str, Any]:
    options, device = b.options, engine.device
    gpu = device.type == "cuda"
    measured = torch.bfloat16 if gpu else engine.dtype
    made = stamp(device, watch.driver if watch is not None else None)  # now: sources may be edited during a long run
    resident, person = Resident(device), identity(engine.variant)
    resident.held["ours"] = resident._now()
    ours = Ours(engine, person, options.steps)
    first = ours(0).total
    start = ceilings.measure(device, measured)
    makers: dict[str, Maker] = {UNHOISTED: Unhoisted(engine, person, options.steps), "ours": ours}
    if options.peers:
        theirs = b.attempt(EAGER.name, lambda: resident.loading(EAGER.name, lambda: _peer(b, engine, EAGER)))
        makers = ({EAGER.name: theirs} if theirs else {}) | makers
    samples = alternate(makers, options.runs, resident)
    makers.clear()
    theirs = None
    resident.held.pop(EAGER.name, None)
    gc.collect()
    solo, timeline = _alone(engine, ours, watch)
    tables = [_peer_row(EAGER.name, EAGER, samples.get(EAGER.name), samples["ours"])] if options.peers else []
    everything = [sample.total for sample in samples["ours"]]
    for index, peer in enumerate(PEERS[1:] if options.peers else ()):
        found = _beside(b, engine, ours, peer, resident, first=100 * (index + 1))
        tables.append(_peer_row(peer.name, peer, *(found or (None, None))))
        if found:
            samples[peer.name] = found[0]
            everything += [sample.total for sample in found[1]]
    steady = Row.of("video", "ours, all turns", "s", everything, "beside every peer: how steady the machine was")
    b.rows += [*_rows(samples), steady]
    b.rows += latency.measure(engine, ours, options.runs, opening, first)
    b.rows += rates.rows(engine, samples["ours"])
    compared = b.attempt("parity", lambda: parity.measure(engine, options.steps)) if options.peers else None
    stability = checks.check_ceilings(start, ceilings.measure(device, measured), gpu)
    seen: Watched | None = watch.seen if watch is not None and gpu else None
    if seen is not None:
        checks.check_watched(seen)
    b.skip("memory against the plan", "this engine makes no memory plan; the peak above is what was seen")
    if not gpu:
        b.skip("memory of each peer by itself", "on a CPU all of them share one process; only its whole is seen")
    return {
        "schema": SCHEMA,
        "engine": describe(engine),
        "settings": {"steps": options.steps, "runs": options.runs},
        "made": made,
        "machine": {"memory_bytes": memory_bytes(device), "torch_threads": torch.get_num_threads()},
        "ceilings": stability,
        "rows": [row.stamped(made) for row in b.rows],
        "waterfall": _waterfall(samples),
        "rates": rates.achieved(engine, samples["ours"], start),
        "targets": rates.targets(engine, samples["ours"], start),
        "peers": tables,
        "memory": {**timeline, "plan": None},
        "energy": solo,
        "parity": compared,
        "watched": seen.summary() if seen is not None else None,
        "not_measured": b.missing,
    }


def _peer(b: Bench, engine: ConsisID, peer: Peer) -> Theirs:
    return Theirs(engine, identity(engine.variant), b.options.steps, peer)


def _beside(
    b: Bench, engine: ConsisID, ours: Ours, peer: Peer, resident: Resident, first: int
) -> tuple[list[Sample], list[Sample]] | None:
    """A peer and the engine in turns; None with a line under "not measured" where it cannot run."""
    if peer.gpu and engine.device.type != "cuda":
        b.skip(peer.name, "it moves weights to a GPU and back, and there is none")
        return None
    if peer.slow and not b.options.compiled:
        b.skip(peer.name, "it was not asked for; --compiled takes minutes of compilation")
        return None

    def work() -> tuple[list[Sample], list[Sample]]:
        maker = resident.loading(peer.name, lambda: _peer(b, engine, peer))
        found = alternate({peer.name: maker, "ours": ours}, b.options.runs, resident, first)
        return found[peer.name], found["ours"]

    found = b.attempt(peer.name, work)
    resident.held.pop(peer.name, None)
    return found


def _alone(engine: ConsisID, ours: Ours, watch: Watch | None) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """One video with memory sampled and, on a GPU, its energy."""
    nested = Watch(watch.nvml, watch.handle) if watch is not None and engine.device.type == "cuda" else None
    with memory.Timeline(engine.device) as timeline:
        if nested is None:
            sample = ours(50)
        else:
            with nested:
                sample = ours(50)
    energy = None
    if nested is not None and nested.seen.joules is not None:
        energy = {"joules_per_video": nested.seen.joules, "steps": ours.steps, "seconds": sample.total}
    return energy, timeline.to_dict(sample.stages)


def _rows(samples: dict[str, list[Sample]]) -> list[Row]:
    rows = []
    for name, found in samples.items():
        rows.append(Row.of("video", name, "s", [sample.total for sample in found]))
        rows += [
            Row.of("stage", f"{name}: {stage}", "s", [sample.stages[stage] for sample in found])
            for stage in found[0].stages
        ]
        note = "without the first step, which has no mark before it" if name.startswith("diffusers") else ""
        rows.append(Row.of("step", name, "s", [seconds for sample in found for seconds in sample.steps], note))
        peaks = [sample.peak / 2**30 for sample in found if sample.peak is not None]
        if peaks:
            rows.append(Row.of("memory", f"{name}: peak allocated", "GiB", peaks, "less what the others hold at rest"))
    return rows


def _median(values: list[float]) -> float:
    return Row.of("", "", "", values).median


def _waterfall(samples: dict[str, list[Sample]]) -> list[dict[str, Any]]:
    """Seconds of a step down the rungs; gain is what a rung saves over the one above."""
    what = {
        EAGER.name: "the reference, eager",
        UNHOISTED: "one graph per block, fused q/k/v, folded face attention, no text in the last block",
        "ours": "nothing in the loop that does not change in it",
    }
    rungs, above = [], None
    for name, technique in what.items():
        if name in samples:
            seconds = _median([s for sample in samples[name] for s in sample.steps])
            rungs.append(
                {"name": name, "technique": technique, "step_seconds": seconds, "gain": above and above - seconds}
            )
            above = seconds
    return rungs


def _peer_row(name: str, peer: Peer, theirs: list[Sample] | None, ours: list[Sample] | None) -> dict[str, Any]:
    """A form of diffusers beside the engine in the same turns, and beside what its authors state."""

    def of(found: list[Sample] | None) -> dict[str, Any] | None:
        if not found:
            return None
        peaks = [sample.peak for sample in found if sample.peak is not None]
        return {
            "seconds": _median([sample.total for sample in found]),
            "step_seconds": _median([s for sample in found for s in sample.steps]),
            "peak_gb": max(peaks) / 1e9 if peaks else None,
        }

    stated = peer.reference_gb
    return {"name": name, "stated_gb": list(stated) if stated else None, "theirs": of(theirs), "ours": of(ours)}


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
        with file_aside(folder / name) as aside:
            aside.write_text(content)
    return [folder / name for name in contents]
