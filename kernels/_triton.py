"""Triton, or what stands in its place where it is not installed, and the question whether a kernel runs here.

The kernel files take `triton` and `tl` from here, so that each of them can be imported without Triton. A kernel is
interpreted (runs on a CPU, slowly, without a compiler) where TRITON_INTERPRET was set when Triton was imported; Triton
decides that, and what it makes of a kernel says so.

torch.compile has to be able to trace the question, so it asks nothing but constants and the tensor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor


class _Absent:
    """Every attribute is itself, and as a decorator it returns what it decorates: kernels that nobody calls."""

    def __getattr__(self, name: str) -> "_Absent":
        return self

    def __call__(self, function: Any) -> Any:
        return function


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = _Absent()

INSTALLED = not isinstance(triton, _Absent)


@triton.jit
def _nothing():  # type: ignore[no-untyped-def]
    """A kernel to see how Triton makes kernels."""


INTERPRETED = INSTALLED and not isinstance(_nothing, triton.JITFunction)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WHOLE: ContextVar[bool] = ContextVar("whole", default=False)


@contextmanager
def whole() -> Iterator[None]:
    """In this context, and in no other, every call of a kernel is one operator, on any device: for a graph that is
    traced without data, in which each call shall be one node."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


def whole_calls() -> bool:
    """Whether whole() is active here.

    Dynamo, the front of torch.compile, breaks a graph in two where a context variable is read. It traces with the
    tensors that a call was given, so the choice is the one of those, whole() or not.
    """
    return not torch.compiler.is_dynamo_compiling() and _WHOLE.get()


def runs(x: Tensor) -> bool:
    """Whether x goes through the kernels: on a GPU, or anywhere when interpreted; otherwise the reference takes it.

    The interpreter has no bfloat16 arithmetic (it computes on the bits), so there bfloat16 takes the reference.
    """
    if whole_calls():
        return True
    if INTERPRETED:
        return x.dtype in (torch.float16, torch.float32)
    return INSTALLED and x.is_cuda and x.dtype in DTYPES


def padded(n: int) -> int:
    """The size of a block that holds n elements: blocks are powers of two."""
    return int(triton.next_power_of_2(n))
