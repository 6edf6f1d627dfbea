"""Ray (to come)."""

from typing import Any


def run(*given: Any) -> None:
    """To come."""
