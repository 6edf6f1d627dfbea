"""Fused kernels of ConsisID. One file per kernel: the PyTorch reference first, then what replaces it on a GPU.

The functions exported here are what the networks call. Importing them needs neither a GPU nor Triton.
"""

from ._triton import whole
from .face_cross_attention import face_cross_attention
from .group_norm_silu import group_norm_silu
from .joint_attention import describe, joint_attention
from .linear_gelu import linear_gelu
from .modulated_norm import gated_modulated_norm, gated_residual, modulated_norm
from .qk_norm_rope import qk_norm_rope
from .workspace import workspace

__all__ = [
    "describe",
    "face_cross_attention",
    "gated_modulated_norm",
    "gated_residual",
    "group_norm_silu",
    "joint_attention",
    "linear_gelu",
    "modulated_norm",
    "qk_norm_rope",
    "whole",
    "workspace",
]
