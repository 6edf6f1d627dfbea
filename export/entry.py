"""The entry point of consisid-build, which imports nothing before an interrupt is heard."""

from collections.abc import Sequence

from consisid.engine.util.interrupts import start


def build(arguments: Sequence[str] | None = None) -> int:
    """consisid-build; returns the exit code."""
    return start("consisid-build", "consisid.export.cli", arguments)
