"""Kernels compiled ahead of time, with no GPU: their resources and instructions, and PTX for TensorRT."""
