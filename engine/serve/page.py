"""The page (to come)."""

from typing import Any


def add_page(app: Any, service: Any) -> None:
    """To come."""
