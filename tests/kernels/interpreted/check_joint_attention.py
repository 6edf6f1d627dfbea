"""joint_attention in Triton's interpreter; see ../test_interpreted.py."""

import pytest
import torch
from torch.library import opcheck

from consisid.kernels import dispatch, joint_attention, ops
from consisid.kernels.dispatch import Config
from consisid.kernels.joint_attention import by_kernel, reference

PLAIN = Config(16, 32, 4, 1)
CONFIGS = {
    "plain": PLAIN,
    "ahead": Config(16, 32, 4, 1, ahead=True),
    "two blocks ahead": Config(16, 32, 4, 1, ahead=True, unrolled=True),
    "descriptors": Config(16, 32, 4, 1, descriptors=True),
    "warp specialised": Config(32, 16, 4, 1, descriptors=True, warp_specialize=True, ahead=True),
}
# batch, queries, keys, heads, head_dim; 226 text tokens are what a prompt has
SHAPES = [(2, 13, 37, 3, 64), (1, 1, 1, 1, 64), (1, 31, 64, 2, 32), (1, 5, 33, 48, 32), (1, 17, 226 + 5, 1, 128),
          (1, 6, 70, 1, 32)]  # fmt: skip


def arguments(batch, queries, keys, heads, dim, dtype):
    """v, as in the network, is a slice of the fused projection, with its strides."""
    qkv = torch.randn(batch, keys, 3, heads, dim).to(dtype)
    q = torch.randn(batch, queries, heads, dim).to(dtype)
    return q, qkv[:, :, 1].contiguous() * 3, qkv[:, :, 2], dim**-0.5


@pytest.mark.parametrize(
    ("dtype", "config"),
    [(torch.float32, PLAIN), *((torch.float16, config) for config in CONFIGS.values())],
    ids=["float32", *CONFIGS],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(assert_close, shape, dtype, config):
    given = arguments(*shape, dtype)
    assert_close(by_kernel(*given, config), reference, given)


def test_public_function_takes_the_kernel(assert_close):
    given = arguments(1, 7, 40, 2, 16, torch.float32)
    result = joint_attention(*given)
    assert_close(result, reference, given)
    assert torch.equal(result, by_kernel(*given, Config(64, 64, 4, 1)))


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0), (12, 0)])
def test_default_rows_of_the_table(capability):
    """What a GPU without a row of its own would launch, in float16 and with a tail of queries and of keys. The bound is
    that of the polynomial below, and of float16."""
    config = dispatch.default_config(capability, torch.float16)
    q, k, v, scale = arguments(1, config.block_m + 5, 2 * config.block_n + 7, 1, 64, torch.float16)
    exact = reference(q.double(), k.double(), v.double(), scale)
    error = float((by_kernel(q, k, v, scale, config) - exact).abs().max())
    assert error <= (2 * 7.5e-5 + torch.finfo(torch.float16).eps) * float(v.abs().max())


def test_two_blocks_in_an_iteration_change_no_bit():
    """The same blocks in the same order, for even and odd numbers of them."""
    for keys in (1, 32, 33, 64, 65, 96, 97, 128, 130, 170):
        given = arguments(1, 9, keys, 1, 32, torch.float32)
        one, two = (by_kernel(*given, CONFIGS[name]) for name in ("ahead", "two blocks ahead"))
        assert torch.equal(one, two), keys


@pytest.mark.parametrize("polynomial", [2, 4, 8])
def test_polynomial(polynomial):
    """The cubic is right to 7.5e-5 for each weight, and so is a weighted mean, times two for numerator and sum."""
    q, k, v, scale = arguments(1, 19, 131, 2, 64, torch.float32)
    exact = reference(q.double(), k.double(), v.double(), scale)
    config = Config(16, 64, 4, 1, polynomial=polynomial)
    error = float((by_kernel(q, k, v, scale, config) - exact).abs().max())
    assert 1e-7 < error <= 2 * 7.5e-5 * float(v.abs().max())


def test_scores_far_from_zero(assert_close):
    """Scores in the hundreds overflow an exponential unless the maximum is subtracted first."""
    q, k, v, scale = arguments(1, 8, 50, 1, 32, torch.float32)
    given = (q * 40, k * 10, v, scale)
    assert_close(by_kernel(*given, PLAIN), reference, given)


UNROLLED = {
    "one block too few": ("        if paired < last:", "        if paired < 0:"),
    "one block twice": ("        if paired < last:", "        if paired <= last:"),
    "values of the first twice": ("sample, head, second, length, v_b", "sample, head, start, length, v_b"),
}


@pytest.mark.parametrize("fault", UNROLLED)
def test_a_fault_of_two_blocks_is_caught(assert_close, broken, fault):
    config = CONFIGS["two blocks ahead"]
    module = broken("joint_attention", *UNROLLED[fault])
    caught = []
    for keys in (97, 130):  # an odd and an even number of whole blocks before the last
        given = arguments(1, 8, keys, 2, 32, torch.float16)
        assert_close(by_kernel(*given, config), reference, given)
        try:
            assert_close(module.by_kernel(*given, config), reference, given)
        except AssertionError:
            caught.append(keys)
    assert caught


FAULTS = {
    "dropped tail": (
        "    scores = tl.where((last + tl.arange(0, BLOCK_N) < length)",
        "    scores = tl.where((last < 0)",
    ),
    "unmasked tail": ("< length)[None, :], scores", "< length + BLOCK_N)[None, :], scores"),
    "wrong scale": ("scores * FACTOR - raised", "scores * FACTOR * 1.02 - raised"),
    "sum not shrunk": ("total = total * shrink", "total = total"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(assert_close, broken, fault):
    given = arguments(1, 8, 97, 2, 32, torch.float16)
    assert_close(by_kernel(*given, PLAIN), reference, given)
    module = broken("joint_attention", *FAULTS[fault])
    with pytest.raises(AssertionError, match=r"allowed|finite"):
        assert_close(module.by_kernel(*given, PLAIN), reference, given)


def test_operator():
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(ops.joint_attention, arguments(1, 3, 5, 2, 16, torch.float32), test_utils=checks)
