"""Make an engine folder from a checkpoint."""

from .build import build

__all__ = ["build"]
