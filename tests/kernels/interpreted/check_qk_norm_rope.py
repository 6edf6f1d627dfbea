"""qk_norm_rope in Triton's interpreter; see ../test_interpreted.py."""

import pytest
import torch
from torch.library import opcheck

from consisid.kernels import ops, qk_norm_rope
from consisid.kernels._triton import INTERPRETED
from consisid.kernels.qk_norm_rope import reference


def arguments(batch, text, video, heads, dim, dtype):
    length = text + video
    weights = [torch.randn(dim).to(dtype) for _ in range(4)]
    angles = torch.rand(video, dim // 2) * 6.3
    qkv = (torch.randn(batch, length, 3 * heads * dim) * 3 + 0.5).to(dtype)
    return qkv, *weights, angles.cos(), angles.sin(), heads, 1e-6


def test_is_interpreted():
    assert INTERPRETED


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("batch", "text", "video", "heads", "dim"),
    [(2, 7, 13, 3, 64), (1, 0, 1, 1, 64), (1, 1, 0, 2, 32), (2, 226, 5, 1, 16), (1, 2, 3, 48, 64), (1, 5, 11, 2, 24)],
)
def test_equals_reference(assert_close, batch, text, video, heads, dim, dtype):
    given = arguments(batch, text, video, heads, dim, dtype)
    assert_close(qk_norm_rope(*given), reference, given)


def test_takes_a_strided_buffer(assert_close):
    qkv, *rest = arguments(2, 3, 4, 2, 32, torch.float32)
    given = (qkv.transpose(0, 1).contiguous().transpose(0, 1), *rest)
    assert_close(qk_norm_rope(*given), reference, given)


FAULTS = {
    "text rotated": ("(position >= 0)", "(position >= -text)"),
    "dropped tail": ("rows = length * HEADS", "rows = length * HEADS - 1"),
    "turned the other way": ("even * c - odd * s, odd * c + even * s", "even * c + odd * s, odd * c - even * s"),
    "bias of the queries for keys": ("tl.load(k_bias + column", "tl.load(q_bias + column"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(assert_close, broken, fault):
    given = arguments(1, 3, 8, 2, 32, torch.float16)
    outputs = broken("qk_norm_rope", *FAULTS[fault]).launch(*given)
    with pytest.raises(AssertionError, match=r"allowed|finite"):
        assert_close(outputs, reference, given)


def test_rows_so_faint_that_epsilon_decides(assert_close, broken):
    qkv, *rest = arguments(1, 3, 8, 2, 32, torch.float32)
    given = (1e-3 * (qkv - 0.5), *rest)
    assert_close(qk_norm_rope(*given), reference, given)
    with pytest.raises(AssertionError, match="allowed"):
        assert_close(broken("qk_norm_rope", "variance + EPS", "variance").launch(*given), reference, given)


def test_operator():
    given = arguments(1, 2, 3, 2, 16, torch.float32)
    # Not test_aot_dispatch_dynamic: it decomposes the operator into its kernel, which the interpreter does not have.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(ops.qk_norm_rope, given, test_utils=checks)
