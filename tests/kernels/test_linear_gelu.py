"""linear_gelu: the bits of PyTorch's two operators on a CPU, one wide tensor on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from consisid.kernels import linear_gelu, ops
from consisid.kernels.linear_gelu import launch


def arguments(*shape, outputs=24, dtype=torch.float32):
    return tuple(torch.randn(*size).to(dtype) for size in (shape, (outputs, shape[-1]), (outputs,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_the_bits_are_those_of_the_two_operators(dtype):
    x, weight, bias = arguments(2, 7, 16, dtype=dtype)
    expected = F.gelu(F.linear(x, weight, bias), approximate="tanh")
    assert torch.equal(linear_gelu(x, weight, bias), expected)
    assert torch.equal(ops.linear_gelu(x, weight, bias), expected)
    assert not torch.equal(F.gelu(F.linear(x, weight, bias)), expected)  # the other form of GELU


def test_operator():
    given = arguments(2, 5, 16)
    opcheck(ops.linear_gelu, given, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
    piece = given[0].tensor_split(2, 1)[0]
    assert not piece.is_contiguous()
    opcheck(ops.linear_gelu, (piece, *given[1:]), test_utils=("test_schema", "test_faketensor"))


class _Made(TorchDispatchMode):
    """Notes every operator that is not a view, and its keywords."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if isinstance(out, torch.Tensor) and name not in ("view", "t"):
            self.calls.append((name, kwargs or {}))
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_a_gpu_one_wide_tensor_comes_into_being(dtype):
    """Half precision: one call of cuBLASLt. float32: GELU in place."""
    with FakeTensorMode():
        given = [torch.empty(size, dtype=dtype, device="cuda") for size in ((2, 5, 16), (24, 16), (24,))]
        with _Made() as made:
            out = launch(*given)
    assert (out.shape, out.dtype, out.is_contiguous()) == ((2, 5, 24), dtype, True)
    if dtype == torch.float32:
        assert [name for name, _ in made.calls] == ["addmm", "gelu_"]
        assert made.calls[-1][1] == {"approximate": "tanh"}
    else:
        assert made.calls == [("_addmm_activation", {"use_gelu": True})]
