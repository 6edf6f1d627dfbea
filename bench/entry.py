"""The entry point of consisid-bench, which imports nothing before an interrupt is heard."""

from collections.abc import Sequence

from consisid.engine.util.interrupts import start


def bench(arguments: Sequence[str] | None = None) -> int:
    """consisid-bench; returns the exit code."""
    return start("consisid-bench", "consisid.bench.cli", arguments)
