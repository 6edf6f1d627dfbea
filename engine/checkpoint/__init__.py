"""Checkpoints as they come: files in the Hugging Face layout, random weights, and the seeded TINY."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .write import write_checkpoint

__all__ = ["write_checkpoint"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from .write import write_checkpoint

        return write_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
