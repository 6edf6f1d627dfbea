"""ONNX files of graphs with random weights."""

from support.exported import exported

__all__ = ["exported"]
