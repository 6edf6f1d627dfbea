"""Measure an engine folder."""
