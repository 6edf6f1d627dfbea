"""`python -m consisid.bench.gpu`: measure on a GPU that is there for minutes only.

No network, no checkpoint: weights are seeded and random. Each phase is a JSON file, written row by row; an interrupted
phase goes on where it stopped, a finished one is skipped. The check of a row comes before its timing.
"""

import argparse
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from consisid.engine.errors import ConsisIDError, DeviceMemoryError
from consisid.engine.util.cli import run as run_command
from consisid.engine.util.device import check_device
from consisid.engine.variants import VARIANTS, variant_named

from ..core.baselines import NoBaselineError
from ..core.environment import short_stamp, stamp
from ..core.nvml import Watch, load_nvml
from ..core.samples import Row
from ..core.tables import first_line
from ..core.timing import repeat, seconds_of
from .cases import EVERY, PHASES, Case, Context, Unavailable, cases
from .sheet import LATER, Sheet, ceilings_of, line

LIMIT = 450.0  # seconds after which a phase leaves its remaining rows to the next call: a call has 8 minutes
LIMITS = {"first": 265.0, "second": 430.0}  # of phases that are meant for shorter calls
LEAST = 5.0  # seconds that a row gets at least


class FailedError(ConsisIDError):
    """Rows of this engine raised an error or were wrong."""


class OverdueError(BaseException):
    """A row's time was up. No Exception: a compiler that tries again after any of these has to let it through."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OverdueError inside the block after so many seconds, as soon as Python runs again. For the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OverdueError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(case: Case, context: Context, budget: float, left: float = 1e6) -> dict[str, Any]:
    """The row of a case: its seconds and rates, or why there are none.

    Args:
        budget: seconds of timing, unless the case has its own.
        left: seconds of the phase; a row that they cut short is left for the next call.

    "unmeasured" is for what cannot run here, and for whatever others' code does; "failed" for an error of ours, with
    its traceback on stderr, so that the other rows go on while the GPU is there.
    """
    row: dict[str, Any] = {"name": case.name}
    theirs = "unmeasured" if case.foreign else "failed"
    try:
        with torch.no_grad(), time_limit(min(case.limit, left)):
            return row | _timed(case, context, case.budget or budget)
    except OverdueError as reason:
        return row | ({"unmeasured": LATER} if left < case.limit else {theirs: f"OverdueError: {reason}"})
    except (Unavailable, NoBaselineError) as reason:
        return row | {"unmeasured": str(reason)}
    except ModuleNotFoundError as error:
        return row | {"unmeasured": f"{error.name} is not installed"}
    except (torch.OutOfMemoryError, DeviceMemoryError) as error:
        return row | {"unmeasured": f"out of memory: {first_line(error)}"}
    except Exception as error:  # each library raises its own; what is ours is no less an error for being written down
        if not case.foreign:
            traceback.print_exc(limit=-4)
        return row | {theirs: f"{type(error).__name__}: {first_line(error)}"}


def _timed(case: Case, context: Context, budget: float) -> dict[str, Any]:
    work = case.make()
    row: dict[str, Any] = {"error": work.error, "note": work.note}
    if context.checked and work.error is not None and not work.error <= work.allowed:
        wrong = f"wrong: its relative error is {work.error:.1e}, not {work.allowed:.0e}"
        return row | {"unmeasured" if case.foreign else "failed": wrong}
    if context.gpu:
        torch.cuda.reset_peak_memory_stats(context.device)
    if case.once:
        seconds = [seconds_of(work.run, context.device)]
    else:
        seconds = repeat(work.run, context.device, budget, at_least=min(2, case.repeats), at_most=case.repeats)
    found = Row.of("", case.name, "s", seconds)
    row |= {"seconds": found.median, "low": found.low, "high": found.high, "count": found.count}
    if case.flops:
        row["tflops"] = case.flops / found.median / 1e12
    if case.bytes:
        row["gbps"] = case.bytes / found.median / 1e9
    if context.gpu:
        row["peak_gib"] = torch.cuda.max_memory_allocated(context.device) / 2**30
    return row | work.more()


def run_phase(
    phase: str, context: Context, folder: Path, *, again: bool, budget: float, limit: float, only: Sequence[str] = ()
) -> Sheet:
    """Measure what a phase still lacks, a row at a time.

    Args:
        only: parts of names; rows with none of them are passed over. Empty for all rows.
        limit: seconds after which no row begins, and none goes on for longer than LEAST.
    """
    nvml, _ = load_nvml() if context.gpu else (None, None)
    watch = Watch.of(nvml, context.device.index) if nvml else None
    head = {
        "variant": context.variant.name, "shape": str(context.shape),
        "dtype": str(context.dtype).removeprefix("torch."),
        "made": stamp(context.device, watch.driver if watch else None),
    }  # fmt: skip

    def asked(name: str) -> bool:
        return not only or any(words in name for words in only)

    sheet = Sheet(folder, phase, head, short_stamp(context.device), lambda name: again and asked(name))
    if sheet.finished:
        return sheet
    start = time.monotonic()
    for case in cases(phase, context):
        if not asked(case.name) or any(row["name"] == case.name for row in sheet.rows):
            continue
        passed = time.monotonic() - start
        if passed > limit:
            sheet.add({"name": case.name, "unmeasured": LATER})
            continue
        row = measure(case, context, budget, max(LEAST, limit - passed))
        if watch:
            row["clock_mhz"] = watch.clock()
        sheet.add(row)
        print(line(row), flush=True)
        if context.gpu:
            torch.cuda.empty_cache()
    if not only:
        sheet.finish()
    return sheet


def check(sheets: Sequence[Sheet]) -> None:
    """Raises FailedError where a row of ours failed."""
    failed = [(sheet.values["phase"], row) for sheet in sheets for row in sheet.rows if "failed" in row]
    if failed:
        phase, row = failed[0]
        raise FailedError(
            f"{len(failed)} row(s) failed, the first in phase {phase}, {row['name']}: {row['failed']}. The others "
            "stand in their files; run the phase again after a correction."
        )


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m consisid.bench.gpu", description=__doc__.splitlines()[0])
    p.add_argument("--phase", choices=[*PHASES, "all"], required=True, help="what to measure")
    p.add_argument("--output", type=Path, required=True, help="folder for <phase>.json")
    p.add_argument("--variant", choices=list(VARIANTS), default="preview")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--steps", type=int, default=4, help="denoising steps of the e2e phase (default 4)")
    p.add_argument("--budget", type=float, help="seconds of timing per row (default 3 on a GPU, 0.1 on a CPU)")
    p.add_argument("--limit", type=float, help=f"seconds per phase (default {LIMIT:.0f}; {LIMITS})")
    p.add_argument("--only", action="append", default=[], help="rows with this in their names; may be repeated")
    p.add_argument("--no-check", action="store_true", help="time wrong results too: for a device that computes nothing")
    p.add_argument("--again", action="store_true", help="measure what is already there too")
    return p


def work(options: argparse.Namespace) -> None:
    device = check_device(options.device)
    budget = options.budget or (3.0 if device.type == "cuda" else 0.1)
    sheets = []
    for phase in EVERY if options.phase == "all" else [options.phase]:
        print(f"{phase}: {PHASES[phase]}", flush=True)
        context = Context.of(variant_named(options.variant), device, steps=options.steps, checked=not options.no_check)
        limit = options.limit or LIMITS.get(phase, LIMIT)
        again, only = options.again, options.only
        sheets.append(run_phase(phase, context, options.output, again=again, budget=budget, limit=limit, only=only))
        del context
        if device.type == "cuda":
            torch.cuda.empty_cache()
    ceilings = ceilings_of(options.output)
    print(f"\n{options.variant}, {sheets[0].values['dtype']}, {sheets[0].values['made']['device']}")
    for sheet in sheets:
        print(f"{sheet.values['phase']}{'' if sheet.finished else ' (unfinished: run it again)'}")
        for row in sheet.rows:
            print(line(row, ceilings))
    if device.type == "cuda" and (count := torch.cuda.device_count()) > 1:
        print(f"This machine has {count} GPUs: bench/TODO-gpu.md says under 'Several GPUs' what to run on them.")
    check(sheets)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run_command("consisid.bench.gpu", lambda: work(options))
