"""face_cross_attention in Triton's interpreter; see ../test_interpreted.py."""

import pytest
import torch
from torch.library import opcheck

from consisid.kernels import face_cross_attention, ops
from consisid.kernels.face_cross_attention import reference

# batch, samples of keys, text, video, width, heads, tokens of a head
SHAPES = [
    (2, 2, 7, 131, 96, 3, 8),
    (2, 1, 0, 13, 200, 2, 32),
    (1, 1, 226, 1, 24, 1, 4),
    (1, 1, 1, 5, 48, 48, 4),
]


def arguments(batch, samples, text, video, width, heads, tokens, dtype):
    hidden = (torch.randn(batch, text + video, width) * 2 + 1).to(dtype)
    keys = (torch.randn(samples, heads * tokens, width) * width**-0.5).to(dtype)
    values = torch.randn(samples, heads * tokens, width).to(dtype)
    weight, bias = (1 + torch.randn(width) / 4).to(dtype), (torch.randn(width) / 4).to(dtype)
    return hidden, keys, values, weight, bias, heads, text, 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(assert_close, shape, dtype):
    given = arguments(*shape, dtype)
    result = ops.face_cross_attention(*given)
    assert_close(result, reference, given)
    text = given[-2]
    assert torch.equal(result[:, :text], given[0][:, :text])


def test_rows_so_faint_that_epsilon_decides(assert_close, broken):
    """Keys are large, so that attention is far from even."""
    hidden, keys, *rest = arguments(1, 1, 3, 20, 64, 2, 8, torch.float32)
    given = (1e-3 * (hidden - 1), 10 * keys, *rest)
    assert_close(face_cross_attention(*given), reference, given)
    with pytest.raises(AssertionError, match="allowed"):
        assert_close(broken("face_cross_attention", "/ C + EPS)", "/ C)").launch(*given), reference, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_channel_far_from_zero(assert_close, dtype):
    hidden, *rest = arguments(1, 1, 3, 20, 64, 2, 8, dtype)
    hidden[:, :, 5] += 50
    given = (hidden, *rest)
    assert_close(face_cross_attention(*given), reference, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("common", [0, 1])
def test_a_mean_of_many_deviations(assert_close, broken, dtype, common):
    """The norm takes such a mean away; the rounding of the folded keys must not bring a trace of it back, nor what all
    channels of a key have in common."""
    hidden, keys, *rest = arguments(1, 1, 3, 20, 64, 2, 8, dtype)
    given = (1 + hidden / 100, keys * 3 + common, *rest)
    assert_close(face_cross_attention(*given), reference, given)
    if common and dtype is torch.float32:  # in float16 plain PyTorch is as wrong
        fault = broken("face_cross_attention", "scaled - tl.sum(scaled, axis=0) / C", "scaled")
        with pytest.raises(AssertionError, match="allowed"):
            assert_close(fault.launch(*given), reference, given)


def test_other_groups_take_the_reference():
    given = arguments(1, 1, 2, 5, 32, 2, 3, torch.float32)
    assert torch.equal(face_cross_attention(*given), reference(*given))


FAULTS = {
    "one softmax for two heads": ("BLOCK_N // N, N))", "BLOCK_N // (2 * N), 2 * N))"),
    "dropped tail": ("(start + step < C)[:, None]", "(start + step < C - 16)[:, None]"),
    "keys of the first sample": ("folded + sample * key_stride * C", "folded + 0 * key_stride * C"),
    "no bias": ("* rstd[:, None] + offset[None, :]", "* rstd[:, None]"),
    "text rows changed": ("(row >= text_length) & (row < length)", "(row >= 0) & (row < length)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(assert_close, broken, fault):
    given = arguments(2, 2, 3, 8, 64, 4, 8, torch.float16)
    result = broken("face_cross_attention", *FAULTS[fault]).launch(*given)
    with pytest.raises(AssertionError, match=r"allowed|finite"):
        assert_close(result, reference, given)


def test_operator():
    given = arguments(1, 1, 2, 3, 16, 2, 4, torch.float32)
    # Not test_aot_dispatch_dynamic: it decomposes the operator into its kernels, which the interpreter does not have.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(ops.face_cross_attention, given, test_utils=checks)
