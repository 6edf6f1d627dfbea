"""linear_gelu: the bits of PyTorch's two operators on a CPU, one wide tensor in a block on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from consisid.engine.graphs.graph import in_ff_chunks
from consisid.engine.graphs.table import graph_table
from consisid.engine.memory.tracing import count
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW
from consisid.kernels import linear_gelu, ops, workspace
from consisid.kernels.linear_gelu import launch

BLOCK = graph_table(PREVIEW, VideoShape.of(PREVIEW, None, None, None))["block"]
TOKENS, WIDTH = 17776, 3072


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


def alive(events, sizes):
    """The most tensors of these sizes that there are at once."""
    living, most = set(), 0
    for number, size in events:
        living = living | {number} if size in sizes else living - {number}
        most = max(most, len(living))
    return most


@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (2, 1), (1, 3)])
def test_a_block_on_a_gpu_holds_one_wide_tensor(batch, rows):
    """Of [S, 4 C], or of a piece of it; the plain operators hold two."""
    graph = BLOCK if rows == 1 else in_ff_chunks(BLOCK, rows)
    wide = {batch * len(piece) * 4 * WIDTH * 2 for piece in torch.arange(TOKENS).tensor_split(rows)}
    fused, plain = (count(graph, {"B": batch}, torch.bfloat16, fused=fused) for fused in (True, False))
    assert [alive(counted.events, wide) for counted in (fused, plain)] == [1, 2]


def test_a_piece_of_several_samples_is_copied():
    """The rows of a product are evenly apart in memory; those of a piece of two samples are not."""
    x = torch.empty(2, 6, 16, device="meta")
    assert workspace("linear_gelu", x, None, None) == []
    assert workspace("linear_gelu", x[:1, :3], None, None) == []
    assert workspace("linear_gelu", x[:, :3], None, None) == [2 * 3 * 16 * 4]
