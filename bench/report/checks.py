"""When a report is refused: figures that nobody could repeat are not written."""

from dataclasses import asdict
from typing import Any

from consisid.engine.errors import ConsisIDError

from ..core.nvml import Watched
from ..core.peak_rates import MOVED, Ceilings


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
