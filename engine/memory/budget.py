"""Budgets as people write them, in bytes."""

import re
from fractions import Fraction
from math import ceil
from numbers import Integral
from typing import Literal

from ..errors import InputError, shown

# Of sizes as people write them: kB, MB, GB and TB are powers of 1000, and KiB, as well as the letter alone, of 1024.
UNITS = {"": 1, "b": 1} | {
    f"{letter}{form}": (1000 if form == "b" else 1024) ** power
    for power, letter in enumerate("kmgt", 1)
    for form in ("", "b", "i", "ib")
}


MODES = ("batched", "sequential")  # of guidance: both halves at once, or one after the other
MARGIN = 2**30  # bytes that "auto" leaves to others


Budget = int | None | Literal["engine"]
"""Bytes of the device, None for no limit, "engine" for what the engine has when it is the caller's turn there."""


def chosen(budget: Budget, own: int | None) -> int | None:
    """Bytes, None for no limit; own: the engine's at present."""
    return own if budget == "engine" else budget


def parse(memory: "int | str | None", free: int) -> int | None:
    """Bytes of a budget: a number, "8GiB", "8G", "auto" for what is free less MARGIN, None for no limit.

    Raises:
        InputError: anything else.
    """
    if memory is None:
        return None
    if isinstance(memory, Integral) and not isinstance(memory, bool):
        amount = int(memory)
    elif isinstance(memory, str) and memory.strip().lower() == "auto":
        amount = free - MARGIN
    else:
        text = memory.strip().lower() if isinstance(memory, str) else shown(memory)
        found = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) *([a-z]*)", text)
        if not found or found[2] not in UNITS:
            raise InputError(
                f'memory={shown(memory)} is not a budget; give bytes, a size such as "8GiB" or "6000MB", or "auto".'
            )
        amount = int(Fraction(found[1]) * UNITS[found[2]])
    if not 0 < amount < 2**63:
        raise InputError(
            f"memory={shown(memory)} is {shown(amount)} bytes; a budget has to be more than none, and less than 2^63."
        )
    return amount


def check_mode(cfg: str | None) -> str | None:
    """A mode of guidance that a plan may be asked for; raises InputError for another."""
    if not (cfg is None or (isinstance(cfg, str) and cfg in MODES)):
        raise InputError(f"cfg={shown(cfg)} is none of {', '.join(MODES)}.")
    return cfg


def show(count: int) -> str:
    """Bytes for people, rounded up, in a form that `parse` reads."""
    unit, size = ("GiB", 2**30) if count >= 2**30 else ("MiB", 2**20)
    return f"{ceil(count / size * 100) / 100:.2f}{unit}"
