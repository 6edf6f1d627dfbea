"""The drop-in for diffusers' ConsisIDPipeline: its names and call, over an engine."""

from .pipeline import ConsisIDPipeline

__all__ = ["ConsisIDPipeline"]
