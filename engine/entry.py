"""The entry points of consisid and consisid-generate, which import nothing before an interrupt is heard."""

from collections.abc import Sequence

from .util.interrupts import start


def generate(arguments: Sequence[str] | None = None) -> int:
    """consisid-generate; returns the exit code."""
    return start("consisid-generate", "consisid.engine.cli", arguments)


def consisid(arguments: Sequence[str] | None = None) -> int:
    """consisid; returns the exit code."""
    return start("consisid", "consisid.engine.main", arguments)
