"""Fused kernels of ConsisID. One file per kernel: the PyTorch reference first, then what replaces it on a GPU.

The functions exported here are what the networks call. Importing them needs neither a GPU nor Triton.
"""

from ._triton import whole
from .functions import (
    face_cross_attention,
    gated_modulated_norm,
    gated_residual,
    group_norm_silu,
    joint_attention,
    linear_gelu,
    modulated_norm,
    qk_norm_rope,
)
from .joint_attention import describe
from .partial_attention import merge, partial_attention
from .workspace import workspace

__all__ = [
    "describe",
    "face_cross_attention",
    "gated_modulated_norm",
    "gated_residual",
    "group_norm_silu",
    "joint_attention",
    "linear_gelu",
    "merge",
    "modulated_norm",
    "partial_attention",
    "qk_norm_rope",
    "whole",
    "workspace",
]
