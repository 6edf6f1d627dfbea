"""What the launchers launch at the size of ConsisID-preview, found by running them on meta tensors.

A recorder stands in for the kernels, so the arguments, constants and options compiled by resources.py are those of a
real call, and a launcher that changes changes them too.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from . import tuning
from .face_cross_attention import launch as launch_face
from .group_norm_silu import launch as launch_group_norm
from .joint_attention import by_kernel
from .modulated_norm import launch_both, launch_norm, launch_residual
from .qk_norm_rope import launch as launch_qk

TEXT, VIDEO, HEADS, DIM, TEMPORAL = 226, 17550, 48, 64, 9
TOKENS, WIDTH = TEXT + VIDEO, HEADS * DIM
FACE_HEADS, FACE_TOKENS = 16, 32


@dataclass(frozen=True)
class Launch:
    """One kernel as it would have been launched. options: num_warps and num_stages."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


class _Recorder:
    """kernel[grid](...) notes the call instead of making it."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self.record

    def record(self, *arguments: Any, **keywords: Any) -> None:
        options: dict[str, int] = {name: keywords.pop(name) for name in ("num_warps", "num_stages") if name in keywords}
        named = dict(zip(self.kernel.arg_names, arguments, strict=False)) | keywords
        self.launches.append(Launch(self.kernel, named, options))


def _record(launch: Callable[..., Any], *arguments: Any) -> list[Launch]:
    launches: list[Launch] = []
    module = sys.modules[launch.__module__]
    kernels = {name: value for name, value in vars(module).items() if hasattr(value, "arg_names")}
    stands_in: dict[str, Any] = {name: _Recorder(kernel, launches) for name, kernel in kernels.items()}
    if hasattr(module, "wrap_triton"):
        stands_in["wrap_triton"] = lambda kernel: kernel
    with mock.patch.multiple(module, **stands_in):
        launch(*arguments)
    return launches


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(config: tuning.Config) -> list[Launch]:
    qkv = _meta(2, TOKENS, 3, HEADS, DIM)
    q, k = _meta(2, TOKENS, HEADS, DIM), _meta(2, TOKENS, HEADS, DIM)
    return _record(by_kernel, q, k, qkv[:, :, 2], DIM**-0.5, config)


def _group_norm(channels_last: bool) -> list[Launch]:
    """The widest block of the decoder at its largest size, of a first chunk: nine frames from three."""
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    x = _meta(1, 128, 9, 480, 720).to(memory_format=layout)
    low = _meta(1, 128, 3, 60, 90).to(memory_format=layout)
    return _record(launch_group_norm, x, _meta(128), _meta(128), low, low, 32, 1e-6)


def launches(arch: int) -> Iterator[tuple[str, Launch]]:
    """Every kernel with its name in the table. Attention depends on the architecture by its default options."""
    hidden, modulation, weight = _meta(2, TOKENS, WIDTH), _meta(2, 3, WIDTH), _meta(WIDTH)
    angles, head = _meta(VIDEO, DIM // 2, dtype=torch.float32), _meta(DIM)
    folded = _meta(2, FACE_HEADS * FACE_TOKENS, WIDTH)
    config = tuning.default_config((arch // 10, arch % 10), torch.bfloat16)
    groups = {
        "joint_attention": _attention(config),
        "qk_norm_rope": _record(
            launch_qk, _meta(2, TOKENS, 3 * WIDTH), head, head, head, head, angles, angles, HEADS, 1e-6
        ),
        "modulated_norm": _record(launch_norm, hidden, modulation, weight, weight, TEXT, 1e-5),
        "gated_residual": _record(launch_residual, hidden, hidden, modulation, TEXT),
        "gated_modulated_norm": _record(
            launch_both, hidden, hidden, modulation, modulation, weight, weight, TEXT, 1e-5
        ),
        "face_cross_attention": _record(
            launch_face, hidden, folded, folded, weight, weight, FACE_HEADS, TEXT, 1e-5
        ),
        "group_norm_silu": _group_norm(False),
        "group_norm_silu channels last": _group_norm(True),
    }  # fmt: skip
    if arch >= 90:
        plain = not config.descriptors
        other = tuning.Config(**vars(config) | {"descriptors": plain, "warp_specialize": False})
        groups[f"joint_attention {'by descriptors' if plain else 'by plain loads'}"] = _attention(other)
    if arch == 100:
        other = tuning.Config(128, 128, 4, 2, descriptors=True, warp_specialize=True)
        groups["joint_attention warp specialised"] = _attention(other)
    for group, recorded in groups.items():
        for launch in recorded:
            part = launch.kernel.__name__.removesuffix("_kernel")
            yield (group if len(recorded) == 1 else f"{group}: {part}"), launch
