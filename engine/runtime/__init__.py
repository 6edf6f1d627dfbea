"""Calls of the loaded graphs."""
