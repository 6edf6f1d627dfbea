"""What the launchers launch at full size, found by running them on meta tensors.

A recorder stands in for the kernels, so the arguments, constants and options compiled by resources.py are those of a
real call, and a launcher that changes changes them too.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from .. import dispatch
from ..joint_attention import by_kernel
from ..tools.cases import FULL, cases


@dataclass(frozen=True)
class Launch:
    """One kernel as it would have been launched. options: num_warps and num_stages; grid: programs per axis."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]
    grid: tuple[int, ...] = ()


class _Recorder:
    """kernel[grid](...) notes the call instead of making it."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches
        self.grid: tuple[int, ...] = ()

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        self.grid = tuple(grid)
        return self.record

    def record(self, *arguments: Any, **keywords: Any) -> None:
        options: dict[str, int] = {name: keywords.pop(name) for name in ("num_warps", "num_stages") if name in keywords}
        named = dict(zip(self.kernel.arg_names, arguments, strict=False)) | keywords
        self.launches.append(Launch(self.kernel, named, options, self.grid))


def record(launch: Callable[..., Any], *arguments: Any) -> list[Launch]:
    """What a launcher launches of our kernels for these arguments, which may be meta tensors."""
    launches: list[Launch] = []
    module = sys.modules[launch.__module__]
    kernels = {name: value for name, value in vars(module).items() if hasattr(value, "arg_names")}
    stands_in: dict[str, Any] = {name: _Recorder(kernel, launches) for name, kernel in kernels.items()}
    if not kernels:  # a library's
        return launches
    if hasattr(module, "wrap_triton"):
        stands_in["wrap_triton"] = lambda kernel: kernel
    with mock.patch.multiple(module, **stands_in):
        launch(*arguments)
    return launches


def launches(arch: int) -> Iterator[tuple[str, Launch]]:
    """Every kernel with its name in the table. Attention depends on the architecture by its default options."""
    for case in cases(FULL, "meta"):
        if case.name == "joint_attention":
            for name, config in _variants(arch).items():
                yield name, record(by_kernel, *case.arguments, config)[0]
            continue
        recorded = record(case.launch, *case.arguments)
        for launch in recorded:
            part = launch.kernel.__name__.removesuffix("_kernel")
            yield (case.name if len(recorded) == 1 else f"{case.name}: {part}"), launch


def _variants(arch: int) -> dict[str, dispatch.Config]:
    """The default; on data-centre GPUs since Hopper also other ways to read tiles and to divide work between warps. The
    options of the loop are in instructions.py."""
    found = {"joint_attention": dispatch.default_config((arch // 10, arch % 10), torch.bfloat16)}
    if arch in (90, 100):
        found["joint_attention by plain loads"] = dispatch.Config(128, 128, 8, 2)
    if arch == 100:
        found["joint_attention warp specialised"] = dispatch.Config(
            128, 128, 4, 2, descriptors=True, warp_specialize=True
        )
    return found
