"""`python -m consisid.bench.gpu`: measure on a GPU that is there for minutes only.

No network, no checkpoint: weights are seeded and random. Each phase is a JSON file, written row by row; an interrupted
phase goes on where it stopped, a finished one is skipped. The check of a row comes before its timing.
"""

import argparse
import json
import math
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from consisid.engine.errors import ConsisIDError, DeviceMemoryError
from consisid.engine.util.cli import run as run_command
from consisid.engine.util.device import check_device
from consisid.engine.util.files import atomic_file
from consisid.engine.variants import variant_named

from ..core.environment import short_stamp, stamp
from ..core.nvml import Watch, load_nvml
from ..core.timing import repeat, seconds_of
from .cases import EVERY, PHASES, Case, Context, Unavailable, cases

SCHEMA = 2
ASSUMED = 100.0  # TFLOP/s of a GPU whose ceilings phase has not run: a slow one, so that a row is rather left
LIMIT = 450.0  # seconds after which a phase leaves its remaining rows to the next call: a call has 8 minutes
LIMITS = {"first": 265.0, "second": 430.0}  # of phases that are meant for shorter calls
LEAST = 5.0  # seconds that a row gets at least
LATER = "left for the next call: the phase's time was up"


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


class Sheet:
    """DIR/<phase>.json, rewritten whole after each row.

    A row that was made by other sources, another PyTorch or Triton, or on another GPU is measured anew, and so is one
    that failed or was left for lack of time.

    Args:
        again: whether a row is measured anew, by its name.
    """

    def __init__(
        self, folder: Path, phase: str, head: dict[str, Any], row_stamp: dict[str, Any], again: Callable[[str], bool]
    ):  # fmt: skip
        self.file, self.row_stamp = folder / f"{phase}.json", row_stamp
        self.values: dict[str, Any] = {"schema": SCHEMA, "phase": phase, "finished": False, **head, "rows": []}
        found = json.loads(self.file.read_text()) if self.file.is_file() else {}
        if found.get("schema") == SCHEMA and all(found[key] == head[key] for key in ("variant", "shape", "dtype")):
            kept = [row for row in found["rows"] if row["made"] == row_stamp and not open_row(row)]
            kept = [row for row in kept if not again(row["name"])]
            self.values["rows"] = kept
            self.values["finished"] = bool(found["finished"]) and len(kept) == len(found["rows"])

    @property
    def finished(self) -> bool:
        return bool(self.values["finished"])

    def has(self, name: str) -> bool:
        return any(row["name"] == name for row in self.values["rows"])

    def add(self, row: dict[str, Any]) -> None:
        self.values["rows"].append({**row, "made": self.row_stamp})
        self.write()

    def finish(self) -> None:
        self.values["finished"] = not any(map(open_row, self.values["rows"]))
        self.write()

    def write(self) -> None:
        with atomic_file(self.file) as aside:
            aside.write_text(json.dumps(self.values, indent=1) + "\n")


def open_row(row: dict[str, Any]) -> bool:
    """Whether a later call has to measure a row again."""
    return "failed" in row or row.get("unmeasured") == LATER


def measure(case: Case, context: Context, budget: float, limit: float = math.inf) -> dict[str, Any]:
    """The row of a case: its seconds and rates, or why there are none.

    Args:
        budget: seconds of timing, unless the case has its own.
        limit: seconds after which it ends, unless the case's own is shorter.

    "unmeasured" is for what cannot run here, and for whatever others' code does; "failed" for an error of ours, with
    its traceback on stderr, so that the other rows go on while the GPU is there.
    """
    row: dict[str, Any] = {"name": case.name}
    try:
        with torch.no_grad(), time_limit(min(case.limit, limit, 1e6)):
            return row | _timed(case, context, case.budget or budget)
    except OverdueError as reason:
        return row | {"unmeasured" if case.foreign else "failed": f"OverdueError: {reason}"}
    except Unavailable as reason:
        return row | {"unmeasured": str(reason)}
    except ModuleNotFoundError as error:
        return row | {"unmeasured": f"{error.name} is not installed"}
    except (torch.OutOfMemoryError, DeviceMemoryError) as error:
        return row | {"unmeasured": f"out of memory: {_first(error)}"}
    except Exception as error:  # each library raises its own; what is ours is no less an error for being written down
        if case.foreign:
            return row | {"unmeasured": f"{type(error).__name__}: {_first(error)}"}
        traceback.print_exc(limit=-4)
        return row | {"failed": f"{type(error).__name__}: {_first(error)}"}


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _timed(case: Case, context: Context, budget: float) -> dict[str, Any]:
    work = case.make()
    row: dict[str, Any] = {"error": work.error, "note": work.note}
    if context.checked and work.error is not None and not work.error <= work.allowed:
        key = "unmeasured" if case.foreign else "failed"
        return row | {key: f"wrong: its relative error is {work.error:.1e}, not {work.allowed:.0e}"}
    if context.gpu:
        torch.cuda.reset_peak_memory_stats(context.device)
    if case.once:
        seconds = [seconds_of(work.run, context.device)]
    else:
        seconds = repeat(work.run, context.device, budget, at_least=min(2, case.repeats), at_most=case.repeats)
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    row |= {"seconds": median, "low": low, "high": high, "count": len(seconds)}
    if case.flops:
        row["tflops"] = case.flops / median / 1e12
    if case.bytes:
        row["gbps"] = case.bytes / median / 1e9
    if context.gpu:
        row["peak_gib"] = torch.cuda.max_memory_allocated(context.device) / 2**30
    return row | work.more()


def predicted(case: Case, tflops: float) -> float:
    """Seconds that a row takes at least: its check, a call that is not counted, and two that are, at a quarter of what
    the GPU's matrix units give."""
    return 4 * case.flops / (0.25 * tflops * 1e12)


def run_phase(
    phase: str, context: Context, folder: Path, *, again: bool, budget: float, limit: float, only: Sequence[str] = ()
) -> Sheet:
    """Measure what a phase still lacks, a row at a time.

    Args:
        only: parts of names; rows with none of them are passed over. Empty for all rows.
        limit: seconds after which no row begins, nor before it one that is predicted to end later, but for the first.
    """
    nvml, _ = load_nvml() if context.gpu else (None, None)
    watch = Watch.of(nvml, context.device.index) if nvml else None
    head = {
        "variant": context.variant.name,
        "shape": str(context.shape),
        "dtype": str(context.dtype).removeprefix("torch."),
        "made": stamp(context.device, watch.driver if watch else None),
    }

    def asked(name: str) -> bool:
        return not only or any(words in name for words in only)

    sheet = Sheet(folder, phase, head, short_stamp(context.device), lambda name: again and asked(name))
    if sheet.finished:
        return sheet
    tflops = ceilings_of(folder).get("tflops", ASSUMED) if context.gpu else math.inf
    start, begun = time.monotonic(), False
    for case in cases(phase, context):
        if sheet.has(case.name) or not asked(case.name):
            continue
        passed = time.monotonic() - start
        if passed > limit or (begun and passed + predicted(case, tflops) > limit):
            sheet.add({"name": case.name, "unmeasured": LATER})
            continue
        begun = True
        row = measure(case, context, budget, max(LEAST, limit - passed))
        if watch:
            row["clock_mhz"] = watch.clock()
        sheet.add(row)
        print(line(row, None), flush=True)
        if context.gpu:
            torch.cuda.empty_cache()
    if not only:
        sheet.finish()
    return sheet


def check(sheets: Sequence[Sheet]) -> None:
    """Raises FailedError where a row of ours failed."""
    failed = [(sheet.values["phase"], row) for sheet in sheets for row in sheet.values["rows"] if "failed" in row]
    if failed:
        phase, row = failed[0]
        raise FailedError(
            f"{len(failed)} row(s) failed, the first in phase {phase}, {row['name']}: {row['failed']}. The others "
            "stand in their files; run the phase again after a correction."
        )


def ceilings_of(folder: Path) -> dict[str, float]:
    """The best product and copy of an earlier ceilings phase, or nothing."""
    file = folder / "ceilings.json"
    if not file.is_file():
        return {}
    rows = json.loads(file.read_text())["rows"]
    products = [r["tflops"] for r in rows if "tflops" in r and "fp8" not in r["name"]]
    copies = [r["gbps"] for r in rows if "gbps" in r and "device" in r["name"] and "host" not in r["name"]]
    return {key: max(values) for key, values in (("tflops", products), ("gbps", copies)) if values}


def line(row: dict[str, Any], ceilings: dict[str, float] | None) -> str:
    """A row for the terminal."""
    for key, words in (("unmeasured", "not measured"), ("failed", "FAILED")):
        if key in row:
            return f"  {row['name'][:60]:<60} {words}: {row[key]}"
    text = f"  {row['name'][:60]:<60} {row['seconds'] * 1e3:10.3f} ms"
    for key, unit in (("tflops", "TFLOP/s"), ("gbps", "GB/s")):
        if key in row:
            share = f" ({row[key] / ceilings[key]:4.0%})" if ceilings and key in ceilings else ""
            text += f" {row[key]:9.4g} {unit}{share}"
    text += f"  error {row['error']:.1e}" if row.get("error") is not None else ""
    return text + (f"\n      {row['shown']}" if "shown" in row else "")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m consisid.bench.gpu", description=__doc__.splitlines()[0])
    p.add_argument("--phase", choices=[*PHASES, "all"], required=True, help="what to measure")
    p.add_argument("--output", type=Path, required=True, help="folder for <phase>.json")
    p.add_argument("--variant", choices=["tiny", "preview"], default="preview")
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
        for row in sheet.values["rows"]:
            print(line(row, ceilings))
    check(sheets)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run_command("consisid.bench.gpu", lambda: work(options))
