"""A report of an engine: everything measured in one process, in turns with diffusers, and written only if it holds."""

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from consisid.engine import ConsisID
from consisid.engine.checkpoint.random_weights import PREFIX
from consisid.engine.errors import InputError

from ..core import peak_rates
from ..core.ablation import ablations, gains
from ..core.baselines import BASELINES, EAGER, Baseline, Diffusers
from ..core.environment import memory_bytes, stamp
from ..core.inputs import identity
from ..core.nvml import Watch, load_nvml
from ..core.samples import Maker, Ours, Resident, Row, Sample, alternate, within
from ..core.tables import write_files
from ..core.timing import seconds_of
from . import memory, parity, sections
from .latency import Latency
from .options import LOG, Missing, Options, check_alone, check_ceilings, check_watched, device_of, folder_of

SCHEMA = 4
PULSE = 0.05  # seconds
MOST_RUNS, MOST_THREADS = 1000, 1024


def guard(nvml: Any, device: torch.device) -> Watch | None:
    """A watch on the GPU, made before CUDA wakes; None on a CPU or without NVML.

    Raises:
        RefusedError: another process holds the GPU.
    """
    if nvml is None or device.type != "cuda":
        return None
    watch = Watch.of(nvml, device.index)
    check_alone(watch.others())
    return watch


def describe(engine: ConsisID) -> dict[str, Any]:
    spec = engine.manifest.spec
    return {
        "variant": spec.variant.name, "shape": str(spec.shape), "dtype": spec.dtype, "backend": spec.backend,
        "random_weights": spec.checkpoint.startswith(PREFIX) or spec.variant.seeded,
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
    missing, device = Missing(), device_of(options)
    reason: str | None = "the engine runs on a CPU"
    if nvml is None and device.type == "cuda":
        nvml, reason = load_nvml()
    watch = guard(nvml, device)
    with folder_of(options, device) as folder:
        opened: list[ConsisID] = []
        before, _ = memory.now(torch.device("cpu"))
        opening = seconds_of(
            lambda: opened.append(ConsisID.open(folder, options.device, memory=options.memory)), torch.device("cpu")
        )
        if watch is None:
            missing.skip("energy, clocks, temperature, throttling, other processes on the GPU", reason or "no NVML")
        else:
            watch.check_same(opened[0].device)
            watch.ours_is_here()
        with watch or nullcontext():
            return Bench(options, opened[0], watch, missing).report(opening, before)


class Bench:
    """A report in the making: an engine, and everyone who makes videos beside it."""

    def __init__(self, options: Options, engine: ConsisID, watch: Watch | None, missing: Missing):
        self.options, self.engine, self.watch, self.missing = options, engine, watch, missing
        self.device, self.gpu = engine.device, engine.device.type == "cuda"
        self.resident = Resident(engine.device)
        self.resident.held["ours"] = memory.now(engine.device)[0] if self.gpu else 0
        self.ours = Ours(engine, identity(engine.variant), options.steps)
        self.dtype = torch.bfloat16 if self.gpu else engine.dtype  # of the products that say how fast the machine is
        self.speeds: dict[str, list[float]] = {"ours": []}  # of the machine, by whose turns

    def report(self, opening: float, before: int) -> dict[str, Any]:
        """Everything.

        Args:
            opening: seconds of ConsisID.open.
            before: bytes of the process before it.
        """
        options, engine = self.options, self.engine
        # Now: sources may be edited during a long run.
        made = stamp(self.device, self.watch.driver if self.watch is not None else None)
        LOG.info("measuring: %s", engine.folder)
        first = self.ours(0).total
        energy, timeline = self.alone(before)
        start = peak_rates.measure(self.device, self.dtype)
        latency = Latency(engine, self.ours, opening, first)
        samples = self.beside_us(latency)
        within = self.within_stated() if options.peers else {}
        forms, everything = [], [sample.total for sample in samples["ours"]]
        for index, form in enumerate(BASELINES if options.peers else ()):
            if form is EAGER:
                theirs, beside = samples.get(form.name, []), samples["ours"] if form.name in samples else []
            else:
                theirs, beside = self.beside(form, 100 * index) or ([], [])
            budget = within[form.reference_gb[1]] if form.reference_gb else None
            forms.append(sections.baseline_row(form, theirs, beside, budget))
            if theirs and form is not EAGER:
                samples[form.name] = theirs
                everything += [sample.total for sample in beside]
        steady = Row.of("video", "ours, all turns", "s", everything, "beside every peer: how steady the machine was")
        self.speeds[steady.name] = [speed for turns in self.speeds.values() for speed in turns]
        note = "product of matrices after each turn"
        rows = [
            *sections.sample_rows(samples),
            steady,
            *(Row.of("machine", name, "TFLOP/s", found, note) for name, found in self.speeds.items()),
            *latency.rows(),
            *sections.counted_rows(engine),
        ]
        compare = partial(parity.measure, engine, options.steps)
        compared = self.missing.attempt("parity", compare) if options.peers else None
        end = peak_rates.measure(self.device, self.dtype)
        seen = None if self.watch is None else self.watch.seen
        if seen is not None:
            check_watched(seen)
        stability = check_ceilings(start, end, self.gpu)
        if not self.gpu:
            reason = "on a CPU all of them share one process; only its whole is seen"
            self.missing.skip("memory of each peer by itself", reason)
        return {
            "schema": SCHEMA,
            "engine": describe(engine),
            "settings": {"steps": options.steps, "runs": options.runs, "memory": options.memory},
            "made": made,
            "machine": {"memory_bytes": memory_bytes(self.device), "torch_threads": torch.get_num_threads()},
            "ceilings": stability,
            "rows": [row.stamped(made) for row in rows],
            "waterfall": gains(samples),
            "rates": sections.roofline(engine, samples["ours"], start),
            "targets": [],  # for readers of older reports, which held goals of this project
            "peers": forms,
            "memory": timeline,
            "energy": energy,
            "parity": compared,
            "watched": seen.summary() if seen is not None else None,
            "not_measured": self.missing.lines,
        }

    def alone(self, before: int) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """One video with memory sampled and, on a GPU, its energy, before any form of diffusers is loaded."""
        nested = None if self.watch is None else Watch(self.watch.nvml, self.watch.handle)
        with memory.Timeline(self.device, before) as timeline, nested or nullcontext():
            sample = self.ours(50)
        energy = None
        if nested is not None and nested.seen.joules is not None:
            energy = {"joules_per_video": nested.seen.joules, "steps": self.ours.steps, "seconds": sample.total}
        plan = memory.planned(self.engine, self.ours.steps, sample.stages)
        return energy, {**timeline.to_dict(sample.stages), "plan": plan}

    def pulse(self, name: str) -> None:
        """How fast the machine is now."""
        self.speeds.setdefault(name, []).append(peak_rates.product_rate(self.device, self.dtype, PULSE))

    def beside_us(self, latency: Latency) -> dict[str, list[Sample]]:
        """diffusers as it is, the engine technique by technique, and the engine, in turns; latencies after each."""
        person, steps, runs = self.ours.person, self.ours.steps, self.options.runs
        makers: dict[str, Maker] = {**ablations(self.engine, person, steps), "ours": self.ours}

        def after() -> None:
            latency()
            self.pulse("ours")

        def work() -> dict[str, list[Sample]]:
            theirs = self.resident.loading(EAGER.name, lambda: Diffusers(self.engine, person, steps))
            return alternate({EAGER.name: theirs} | makers, runs, self.resident, after=after)

        found = self.missing.attempt(EAGER.name, work) if self.options.peers else None
        self.resident.held.pop(EAGER.name, None)
        return found or alternate(makers, runs, self.resident, after=after)

    def beside(self, form: Baseline, first: int) -> tuple[list[Sample], list[Sample]] | None:
        """A form of diffusers and the engine in turns; None with a line under "not measured" where it cannot run."""
        if form.gpu and not self.gpu:
            self.missing.skip(form.name, "it moves weights to a GPU and back, and there is none")
            return None
        if form.slow and not self.options.compiled:
            self.missing.skip(form.name, "it was not asked for; --compiled takes minutes of compilation")
            return None

        def work() -> tuple[list[Sample], list[Sample]]:
            make = partial(Diffusers, self.engine, self.ours.person, self.ours.steps, form)
            makers: dict[str, Maker] = {form.name: self.resident.loading(form.name, make), "ours": self.ours}
            after = partial(self.pulse, form.name)
            found = alternate(makers, self.options.runs, self.resident, first, after)
            return found[form.name], found["ours"]

        found: tuple[list[Sample], list[Sample]] | None = self.missing.attempt(form.name, work)
        self.resident.held.pop(form.name, None)
        return found

    def within_stated(self) -> dict[float, dict[str, Any] | None]:
        """The engine within each budget that the reference's table states, by its reserved GB.

        By itself: a budget limits the whole process, so diffusers may hold nothing meanwhile.
        """
        found: dict[float, dict[str, Any] | None] = {}
        held = self.resident.held.pop("ours", 0)  # what is resident is the budget's business
        for gb in dict.fromkeys(sections.stated_gb()):
            given, name = sections.budget_for(self.engine, gb, self.ours.steps), f"ours within the stated {gb:g} GB"

            def make(index: int, budget: int = given[0]) -> Sample:
                with within(self.engine, budget):
                    return self.ours(index)

            def work(given: tuple[int, bool] = given, name: str = name, make: Maker = make) -> dict[str, Any]:
                samples = alternate({name: make}, self.options.runs, self.resident, first=300)
                return sections.budget_row(*given, samples[name])

            found[gb] = self.missing.attempt(name, work)
        self.resident.held["ours"] = held
        return found


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write report.json, report.md and report.html; return their paths."""
    from .render import html, markdown

    contents = {
        "report.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
        "report.md": markdown(report),
        "report.html": html(report),
    }
    return write_files(folder, contents)
