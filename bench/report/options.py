"""What a report is asked for, what it has to do without, and when it is refused: figures that nobody could repeat are
not written."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from consisid.engine.errors import ConsisIDError, DeviceMemoryError, MemoryBudgetError
from consisid.engine.manifest import Manifest
from consisid.engine.util.device import check_device

from ..core.baselines import BaselineError
from ..core.nvml import Watched
from ..core.peak_rates import MOVED, Ceilings
from ..core.tables import first_line
from ..core.weights import build_random

# Why a part of a report may be missing: no package, no memory for two pipelines or within a budget, a form of diffusers
# that does not run. Anything else is an error of this engine or of this command, and ends it.
MISSING = (ImportError, torch.OutOfMemoryError, DeviceMemoryError, MemoryBudgetError, BaselineError)

LOG = logging.getLogger("consisid")


@dataclass(frozen=True)
class Options:
    """What the command was asked for.

    engine: a folder, or with random_weights the name of a variant, compiled by `backend`. memory: a budget, as
    ConsisID.open takes it. compiled: also diffusers with compiled blocks. peers: diffusers in any form.
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
class Missing:
    """What a report does not have, and why."""

    lines: list[dict[str, str]] = field(default_factory=list)

    def skip(self, what: str, because: str) -> None:
        self.lines.append({"what": what, "because": because})

    def attempt(self, what: str, work: Callable[[], Any]) -> Any:
        """What a part returns, or None and a line under "not measured" where it cannot run here."""
        LOG.info("measuring: %s", what)
        try:
            return work()
        except MISSING as error:
            first = first_line(error, 300)
            self.skip(what, first if isinstance(error, ConsisIDError) else f"{type(error).__name__}: {first}")
            return None
        finally:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


@contextmanager
def folder_of(options: Options, device: torch.device) -> Iterator[Path]:
    """The engine folder, or one with random weights that is there for the length of the block."""
    if not options.random_weights:
        yield Path(options.engine)
        return
    with TemporaryDirectory(prefix="consisid-bench-") as place:
        yield build_random(Path(place) / "engine", options.engine, device, backend=options.backend)


def device_of(options: Options) -> torch.device:
    """Where the engine will run, without opening it."""
    if options.device is not None:
        return check_device(options.device)
    if options.random_weights:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return check_device(Manifest.read(Path(options.engine)).spec.device)


class RefusedError(ConsisIDError):
    """The machine was in no state to be measured; the message says why."""


def check_alone(others: set[int]) -> None:
    """Raises RefusedError where another process holds the GPU."""
    if others:
        raise RefusedError(
            f"{len(others)} other process(es) hold the GPU (as NVML numbers them: "
            f"{', '.join(map(str, sorted(others)))}); measure when it is free."
        )


def check_watched(seen: Watched) -> None:
    """Raises RefusedError where clocks were throttled, or another process came during the run."""
    check_alone(seen.others)
    if seen.throttled:
        raise RefusedError(
            f"The GPU's clocks were throttled during the run ({', '.join(seen.throttled)}); let it cool, see to its "
            "supply and airflow."
        )


def check_ceilings(start: Ceilings, end: Ceilings, gpu: bool) -> dict[str, Any]:
    """What is reported about the ceilings' stability.

    On a CPU a change is reported and not refused: other programs share its cores and its memory as a matter of course,
    nothing tells who took them, and a command that fails at random would teach nobody anything.

    Raises:
        RefusedError: on a GPU, a ceiling that differs by more than MOVED between start and end.
    """
    moved = start.moved(end)
    worst = max(moved, key=lambda name: abs(moved[name]))
    note = None
    if abs(moved[worst]) > MOVED:
        sentence = f"the {worst} ceiling moved by {moved[worst]:+.0%} between start and end (at most {MOVED:.0%})"
        if gpu:
            raise RefusedError(f"{sentence[0].upper()}{sentence[1:]}; the GPU was not in one state. Measure again.")
        note = f"{sentence}: the machine was busy with something else; trust differences of that size no further"
    return {"start": asdict(start), "end": asdict(end), "moved": moved, "note": note}
