"""modulated_norm, gated_residual and both, in Triton's interpreter; see ../test_interpreted.py."""

import pytest
import torch
from torch.library import opcheck

from consisid.kernels import gated_modulated_norm, gated_residual, modulated_norm, ops
from consisid.kernels.modulated_norm import reference_both, reference_norm, reference_residual

SHAPES = [(2, 7, 13, 48), (1, 0, 1, 96), (1, 1, 0, 17), (1, 226, 3, 8), (1, 2, 3, 3072)]  # batch, text, video, width


def arguments(batch, text, video, width, dtype):
    def random(*shape):
        return torch.randn(shape).to(dtype)

    hidden = random(batch, text + video, width) * 3 + 1
    return hidden, random(*hidden.shape), random(2, 3, width), random(2, 3, width), random(width), random(width), text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(assert_close, shape, dtype):
    hidden, update, gates, modulation, weight, bias, text = arguments(*shape, dtype)
    given = (hidden, modulation, weight, bias, text, 1e-5)
    assert_close(modulated_norm(*given), reference_norm, given)
    given = (hidden, update, gates, text)
    assert_close(gated_residual(*given), reference_residual, given)
    given = (hidden, update, gates, modulation, weight, bias, text, 1e-5)
    assert_close(gated_modulated_norm(*given), reference_both, given)


def test_fused_is_the_two_steps_to_the_bit():
    hidden, update, gates, modulation, weight, bias, text = arguments(2, 3, 4, 40, torch.float16)
    total, normed = gated_modulated_norm(hidden, update, gates, modulation, weight, bias, text, 1e-5)
    assert torch.equal(total, gated_residual(hidden, update, gates, text))
    assert torch.equal(normed, modulated_norm(total, modulation, weight, bias, text, 1e-5))


def test_rows_so_faint_that_epsilon_decides(assert_close, broken):
    hidden, _, _, modulation, weight, bias, text = arguments(1, 3, 8, 31, torch.float32)
    given = (1e-3 * (hidden - 1), modulation, weight, bias, text, 1e-5)
    assert_close(modulated_norm(*given), reference_norm, given)
    with pytest.raises(AssertionError, match="allowed"):
        assert_close(broken("modulated_norm", "/ C + EPS)", "/ C)").launch_norm(*given), reference_norm, given)


NORM, RESIDUAL, BOTH = ("modulated_norm", "launch_norm"), ("gated_residual", "launch_residual"), ("both", "launch_both")
FAULTS = {  # what is wrong, and in which of the three functions it has to be seen
    "one text row too many": ("row % length < text_length", "row % length <= text_length", (NORM, RESIDUAL, BOTH)),
    "streams exchanged": ("< text_length, 1, 0)", "< text_length, 0, 1)", (NORM, RESIDUAL, BOTH)),
    "dropped tail": ("inside = column < C", "inside = column < C - 1", (NORM, RESIDUAL, BOTH)),
    "no gate": ("x += gate * tl.load(update", "x += tl.load(update", (RESIDUAL, BOTH)),
    "wrong scale": ("x * (1 + scale) + shift", "x * scale + shift", (NORM, BOTH)),
    "biased deviation": ("centred * centred, axis=0) / C", "centred * centred, axis=0) / (C - 1)", (NORM, BOTH)),
}
ROWS = [(fault, which) for fault, (_, _, seen) in FAULTS.items() for which in seen]


@pytest.mark.parametrize(("fault", "which"), ROWS, ids=[f"{which[0]}, {fault}" for fault, which in ROWS])
def test_a_fault_is_caught(assert_close, broken, fault, which):
    hidden, update, gates, modulation, weight, bias, text = arguments(1, 3, 8, 31, torch.float16)
    given, reference = {
        NORM: ((hidden, modulation, weight, bias, text, 1e-5), reference_norm),
        RESIDUAL: ((hidden, update, gates, text), reference_residual),
        BOTH: ((hidden, update, gates, modulation, weight, bias, text, 1e-5), reference_both),
    }[which]
    launch = getattr(broken("modulated_norm", *FAULTS[fault][:2]), which[1])
    with pytest.raises(AssertionError, match=r"allowed|finite"):
        assert_close(launch(*given), reference, given)


def test_operators():
    hidden, update, gates, modulation, weight, bias, text = arguments(1, 2, 3, 16, torch.float32)
    # Not test_aot_dispatch_dynamic: it decomposes the operator into its kernel, which the interpreter does not have.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(ops.modulated_norm, (hidden, modulation, weight, bias, text, 1e-5), test_utils=checks)
    opcheck(ops.gated_residual, (hidden, update, gates, text), test_utils=checks)
    given = (hidden, update, gates, modulation, weight, bias, text, 1e-5)
    opcheck(ops.gated_modulated_norm, given, test_utils=checks)
