"""An engine for each test, and the latents of one whose weights stay on the device."""

from support.residency import engine, expected

__all__ = ["engine", "expected"]
