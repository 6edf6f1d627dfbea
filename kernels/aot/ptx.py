"""Kernels as code that others launch: PTX for one shape, whose only parameters are the tensors.

Everything else (sizes, strides, the scale) is a constant, so a program that knows nothing of Triton can launch a kernel
with a list of addresses: inputs, then outputs, as TensorRT passes them. Triton's PTX ends its parameters with two
pointers to scratch memory, which these kernels do not use; they are taken out.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..joint_attention import by_kernel
from ..modulated_norm import launch_both, launch_norm, launch_residual
from .record import Launch, record
from .resources import compile_for


@dataclass(frozen=True)
class Code:
    """A kernel for one shape. grid: programs per axis; threads: of a program; shared: bytes of a program's memory."""

    entry: str
    ptx: str
    grid: tuple[int, int, int]
    threads: int
    shared: int

    def dumps(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def loads(cls, data: bytes) -> "Code":
        values = json.loads(data)
        return cls(**{**values, "grid": tuple(values["grid"])})


def _attention(arch: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Launch:
    # Tensor descriptors are made by the host and are no addresses.
    config = dispatch.default_config((arch // 10, arch % 10), q.dtype)
    plain = config if not config.descriptors else dispatch.default_config((8, 0), q.dtype)
    return record(by_kernel, q, k, v, scale, plain)[0]


@dataclass(frozen=True)
class Row:
    """An operator that is one kernel. parameters: its pointers, inputs as the operator takes them, then outputs."""

    launch: Callable[..., Launch]
    parameters: tuple[str, ...]
    outputs: int = 1

    @property
    def inputs(self) -> int:
        return len(self.parameters) - self.outputs


def _first(launcher: Callable[..., Any]) -> Callable[..., Launch]:
    return lambda arch, *arguments: record(launcher, *arguments)[0]


STANDALONE: Mapping[str, Row] = {
    "joint_attention": Row(_attention, ("q", "k", "v", "out")),
    "modulated_norm": Row(_first(launch_norm), ("hidden", "modulation", "weight", "bias", "normed_out")),
    "gated_residual": Row(_first(launch_residual), ("hidden", "update", "gate_modulation", "hidden_out")),
    "gated_modulated_norm": Row(
        _first(launch_both),
        ("hidden", "update", "gate_modulation", "modulation", "weight", "bias", "hidden_out", "normed_out"),
        outputs=2,
    ),
}


def compile_standalone(
    name: str, shapes: Sequence[Sequence[int]], dtype: torch.dtype, attributes: Sequence[Any], arch: int
) -> Code:
    """A row of STANDALONE for tensors of these shapes, contiguous and of one dtype; no GPU is needed.

    Args:
        attributes: what the operator takes after its tensors, in order.
        arch: compute capability such as 89; later GPUs run the code too.
    """
    row = STANDALONE[name]
    tensors = [torch.empty(tuple(shape), dtype=dtype, device="meta") for shape in shapes]
    launch = row.launch(arch, *tensors, *attributes)
    made = compile_for(launch, arch, row.parameters)
    if made.metadata.global_scratch_size or made.metadata.profile_scratch_size:
        raise ValueError(f"{name} wants scratch memory, which nobody gives it; choose other options of the kernel.")
    x, y, z = (*launch.grid, 1, 1)[:3]
    ptx = without_scratch(made.asm["ptx"], len(row.parameters))
    return Code(made.metadata.name, ptx, (x, y, z), made.metadata.num_warps * 32, made.metadata.shared)


def without_scratch(ptx: str, count: int) -> str:
    """PTX whose entry has `count` parameters: what follows them is taken out.

    Raises:
        ValueError: code that reads one of those.
    """
    entry = re.search(r"\.entry\s+\w+\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None, "Triton gives one entry"
    parameters = [line.strip() for line in entry[1].split(",")]
    kept, dropped = parameters[:count], parameters[count:]
    body = ptx[entry.end() :]
    for parameter in dropped:
        name = parameter.split()[-1]
        if re.search(rf"\b{name}\b", body):
            raise ValueError(f"The kernel reads {name}, a parameter that it should not use.")
    return ptx[: entry.start(1)] + "\n\t" + ",\n\t".join(kept) + "\n" + ptx[entry.end(1) :]
