"""Every kernel with arguments as the network passes them: the one list that is compiled ahead of time (aot/record.py),
measured (benchmark.py) and counted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .. import functions
from ..cost import Cost


@dataclass(frozen=True)
class Size:
    """The shapes of a transformer block and of the widest norm of the decoder; by default ConsisID-preview, 49 frames
    of 480 x 720, two samples at once, and the first chunk that the decoder makes of it: nine frames from three."""

    batch: int = 2
    text: int = 226
    video: int = 17550
    heads: int = 48
    dim: int = 64
    face_heads: int = 16
    face_tokens: int = 32
    channels: int = 128
    groups: int = 32
    frames: tuple[int, int, int] = (9, 480, 720)
    latents: tuple[int, int, int] = (3, 60, 90)


FULL = Size()
SMALL = Size(1, 3, 13, 2, 16, 2, 4, 8, 4, (3, 4, 8), (2, 2, 4))


@dataclass(frozen=True)
class Case:
    """public: what the networks call; launch: what runs the kernels; all three take arguments."""

    name: str
    public: Callable[..., Any]
    reference: Callable[..., Any]
    launch: Callable[..., Any]
    arguments: tuple[Any, ...]
    cost: Cost


def cases(size: Size, device: str, dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    """Made one by one, so that the tensors of only one are in memory; "meta" makes none."""

    def random(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    # Modules of the same names as the functions which the package exports in their place.
    attention, rope, norm, face, silu, gelu = (
        import_module(f"consisid.kernels.{name}")
        for name in (
            "joint_attention", "qk_norm_rope", "modulated_norm", "face_cross_attention", "group_norm_silu",
            "linear_gelu",
        )
    )  # fmt: skip
    batch, text, heads, dim, width = size.batch, size.text, size.heads, size.dim, size.heads * size.dim
    tokens, item = text + size.video, dtype.itemsize
    weight, head = random(width), random(dim)

    qkv = random(batch, tokens, 3, heads, dim)
    yield Case(
        "joint_attention", functions.joint_attention, attention.reference, attention.launch,
        (random(batch, tokens, heads, dim), random(batch, tokens, heads, dim), qkv[:, :, 2], dim**-0.5),
        attention.cost(batch, tokens, tokens, heads, dim, item),
    )  # fmt: skip
    angles = random(size.video, dim // 2, dtype=torch.float32)
    yield Case(
        "qk_norm_rope", functions.qk_norm_rope, rope.reference, rope.launch,
        (qkv.flatten(2), head, head, head, head, angles.cos(), angles.sin(), heads, 1e-6),
        rope.cost(batch, tokens, heads, dim, item),
    )  # fmt: skip
    del qkv
    hidden, update, modulation = random(batch, tokens, width), random(batch, tokens, width), random(2, 3, width)
    yield Case(
        "modulated_norm", functions.modulated_norm, norm.reference_norm, norm.launch_norm,
        (hidden, modulation, weight, weight, text, 1e-5),
        norm.cost(batch, tokens, width, item, False, True),
    )  # fmt: skip
    yield Case(
        "gated_residual", functions.gated_residual, norm.reference_residual, norm.launch_residual,
        (hidden, update, modulation, text),
        norm.cost(batch, tokens, width, item, True, False),
    )  # fmt: skip
    yield Case(
        "gated_modulated_norm", functions.gated_modulated_norm, norm.reference_both, norm.launch_both,
        (hidden, update, modulation, modulation, weight, weight, text, 1e-5),
        norm.cost(batch, tokens, width, item, True, True),
    )  # fmt: skip
    yield Case(
        "linear_gelu", functions.linear_gelu, gelu.reference, gelu.launch,
        (hidden, random(4 * width, width) * width**-0.5, random(4 * width)),
        gelu.cost(batch * tokens, width, 4 * width, item),
    )  # fmt: skip
    folded = random(batch, size.face_heads * size.face_tokens, width) * width**-0.5
    yield Case(
        "face_cross_attention", functions.face_cross_attention, face.reference, face.launch,
        (hidden, folded, folded, weight, weight, size.face_heads, text, 1e-5),
        face.cost(batch, tokens, text, width, size.face_heads, size.face_tokens, item),
    )  # fmt: skip
    del hidden, update
    for name, layout in (
        ("group_norm_silu", torch.contiguous_format),
        ("group_norm_silu channels last", torch.channels_last_3d),
    ):
        x = random(1, size.channels, *size.frames).to(memory_format=layout)
        low = random(1, size.channels, *size.latents).to(memory_format=layout)
        before = random(1, size.channels, 2, *size.frames[1:]).to(memory_format=layout)
        yield Case(
            name, functions.group_norm_silu, silu.reference, silu.launch,
            (x, random(size.channels), random(size.channels), low, low, size.groups, 1e-6, 2, before),
            silu.cost(1, size.channels, size.frames, size.latents, item, 2),
        )  # fmt: skip
