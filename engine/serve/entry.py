"""The entry point of consisid-serve, which imports nothing before an interrupt is heard."""

from collections.abc import Sequence

from ..util.interrupts import start


def serve(arguments: Sequence[str] | None = None) -> int:
    """consisid-serve; returns the exit code."""
    return start("consisid-serve", "consisid.engine.serve.cli", arguments)
