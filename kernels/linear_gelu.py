"""A linear layer and the tanh form of GELU (Hendrycks and Gimpel, arXiv:1606.08415) as one operator: the first half of
a transformer block's feed-forward.

Not a kernel of ours: cuBLASLt adds the bias and applies GELU to its accumulators, so the widest tensor of a block is
written once. As two operators it would be written, read and written again, 2 % of a block's time, and exist twice at
the moment that decides the block's peak. The operator is closed to compilers because Inductor takes PyTorch's fused one
apart, into a product and a pass over its result.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._triton import DTYPES, whole_calls
from .cost import Cost


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def launch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The operator consisid::linear_gelu.

    In half precision GELU sees the accumulator, before its one rounding. cuBLASLt's tanh is approximate, by less than
    such a rounding but more than one of float32, which therefore goes through PyTorch's own GELU, in place.
    """
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
        rows = x.flatten(0, -2)
        return torch.ops.aten._addmm_activation(bias, rows, weight.t(), use_gelu=True).unflatten(0, x.shape[:-1])
    return torch.ops.aten.gelu_(F.linear(x, weight, bias), approximate="tanh")


def fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def runs(x: Tensor) -> bool:
    """Whether x goes through the operator: on a GPU, with or without Triton."""
    return whole_calls() or (x.is_cuda and x.dtype in DTYPES)


def cost(rows: int, inputs: int, outputs: int, size: int) -> Cost:
    """The product, and 9 FLOP for each GELU, at `size` bytes an element."""
    elements = rows * inputs + outputs * (inputs + 1) + rows * outputs
    return Cost(flops=2 * rows * inputs * outputs + 9 * rows * outputs, bytes=elements * size)
