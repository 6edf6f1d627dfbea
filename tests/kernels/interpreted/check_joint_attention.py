"""joint_attention in Triton's interpreter; see ../test_interpreted.py."""

import pytest
import torch
from torch.library import opcheck

from consisid.kernels import joint_attention, ops
from consisid.kernels.joint_attention import by_kernel, reference
from consisid.kernels.tuning import Config

PLAIN = Config(16, 32, 4, 1)
CONFIGS = {
    "plain": PLAIN,
    "ahead": Config(16, 32, 4, 1, ahead=True),
    "descriptors": Config(16, 32, 4, 1, descriptors=True),
    "warp specialised": Config(32, 16, 4, 1, descriptors=True, warp_specialize=True, ahead=True),
}
# batch, queries, keys, heads, head_dim; 226 text tokens are what a prompt has
SHAPES = [(2, 13, 37, 3, 64), (1, 1, 1, 1, 64), (1, 31, 64, 2, 32), (1, 5, 33, 48, 32), (1, 17, 226 + 5, 1, 128)]


def arguments(batch, queries, keys, heads, dim, dtype):
    """v, as in the network, is a slice of the fused projection, with its strides."""
    qkv = torch.randn(batch, keys, 3, heads, dim).to(dtype)
    q = torch.randn(batch, queries, heads, dim).to(dtype)
    return q, qkv[:, :, 1].contiguous() * 3, qkv[:, :, 2], dim**-0.5


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(assert_close, shape, dtype, config):
    given = arguments(*shape, dtype)
    assert_close(by_kernel(*given, config), reference, given)


def test_public_function_takes_the_kernel(assert_close):
    given = arguments(1, 7, 40, 2, 16, torch.float32)
    result = joint_attention(*given)
    assert_close(result, reference, given)
    assert torch.equal(result, by_kernel(*given, Config(64, 64, 4, 1)))


@pytest.mark.parametrize("polynomial", [2, 4])
def test_polynomial(polynomial):
    """The cubic is right to 7.5e-5 for each weight, and so is a weighted mean, times two for numerator and sum."""
    q, k, v, scale = arguments(1, 19, 67, 2, 64, torch.float32)
    exact = reference(q.double(), k.double(), v.double(), scale)
    config = Config(16, 32, 4, 1, polynomial=polynomial)
    error = float((by_kernel(q, k, v, scale, config) - exact).abs().max())
    assert 1e-7 < error <= 2 * 7.5e-5 * float(v.abs().max())


def test_scores_far_from_zero(assert_close):
    """Scores in the hundreds overflow an exponential unless the maximum is subtracted first."""
    q, k, v, scale = arguments(1, 8, 50, 1, 32, torch.float32)
    given = (q * 40, k * 10, v, scale)
    assert_close(by_kernel(*given, PLAIN), reference, given)


@pytest.mark.parametrize("fault", ["dropped tail", "wrong scale", "keys of another head"])
def test_a_fault_is_caught(assert_close, fault):
    given = arguments(1, 8, 33, 2, 32, torch.float16)
    q, k, v, scale = given
    wrong = {
        "dropped tail": (q, k[:, :32], v[:, :32], scale),
        "wrong scale": (q, k, v, scale * 1.02),
        "keys of another head": (q, k.flip(2), v, scale),
    }[fault]
    with pytest.raises(AssertionError, match="allowed"):
        assert_close(by_kernel(*wrong, PLAIN), reference, given)


def test_operator():
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(ops.joint_attention, arguments(1, 3, 5, 2, 16, torch.float32), test_utils=checks)
