"""group_norm_silu in Triton's interpreter; see ../test_interpreted.py."""

import pytest
import torch
from torch.library import opcheck

from consisid.kernels import group_norm_silu, ops
from consisid.kernels.group_norm_silu import reference, whole_ratios

# batch, channels, groups, [F, H, W], [f, h, w]
SHAPES = [
    (2, 8, 4, (4, 6, 10), (2, 3, 5)),  # an even number of frames
    (1, 8, 2, (5, 4, 4), (3, 2, 2)),  # an odd number: the first frame by itself
    (1, 6, 3, (3, 7, 11), (2, 1, 11)),  # three groups, primes
    (1, 4, 2, (1, 1, 1), (1, 1, 1)),  # one position
    (1, 16, 1, (9, 33, 35), (3, 11, 7)),  # one group, several chunks
    (1, 4, 2, (2, 190, 191), (1, 19, 191)),  # chunks of which the last is short
]


def arguments(batch, channels, groups, size, low, dtype, memory_format=torch.contiguous_format):
    def random(*shape):
        return torch.randn(shape).to(dtype)

    centres = 5 + torch.arange(channels).view(-1, 1, 1, 1)  # each group has a mean of its own
    x = (random(batch, channels, *size) * 2 + centres).to(dtype).contiguous(memory_format=memory_format)
    scale, shift = random(batch, channels, *low), random(batch, channels, *low)
    return x, random(channels), random(channels), scale, shift, groups, 1e-6


@pytest.mark.parametrize(
    ("dtype", "memory_format"), [(torch.float32, torch.contiguous_format), (torch.float16, torch.channels_last_3d)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(assert_close, shape, dtype, memory_format):
    given = arguments(*shape, dtype, memory_format)
    assert whole_ratios(given[0].shape[2:], given[3].shape[2:])
    result = ops.group_norm_silu(*given)
    assert_close(result, reference, given)
    assert result.is_contiguous(memory_format=memory_format)


def test_values_so_faint_that_epsilon_decides(assert_close, broken):
    x, *rest = arguments(1, 8, 2, (5, 4, 4), (3, 2, 2), torch.float32)
    given = (1e-3 * (x - x.mean((2, 3, 4), keepdim=True)), *rest)
    assert_close(group_norm_silu(*given), reference, given)
    right = "(elements * 1.0) + EPS)"
    with pytest.raises(AssertionError, match="allowed"):
        assert_close(broken("group_norm_silu", right, right.replace(" + EPS", "")).launch(*given), reference, given)


def in_front(x, lead):
    """Frames of another tensor, which is what a chunk hands on."""
    frames = torch.randn(x.shape[0], x.shape[1], lead + 1, *x.shape[3:]).to(x.dtype)
    return frames[:, :, 1:]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("given", [True, False], ids=["before", "repeated"])
@pytest.mark.parametrize(
    "shape", [(1, 4, 2, (4, 3, 5), (2, 3, 5)), (1, 4, 2, (5, 4, 4), (3, 2, 2))], ids=["even", "odd"]
)
def test_frames_in_front_are_those_of_before_or_the_first_again(assert_close, shape, given, memory_format):
    """To the bit; and the others are what they are without any in front."""
    arguments_ = arguments(*shape, torch.float16, memory_format)
    for lead in (1, 2):
        before = in_front(arguments_[0], lead) if given else None
        result = ops.group_norm_silu(*arguments_, lead, before)
        alone = ops.group_norm_silu(*arguments_)
        assert torch.equal(result[:, :, lead:], alone)
        assert torch.equal(result[:, :, :lead], before if given else alone[:, :, :1].expand(-1, -1, lead, -1, -1))
        assert result.is_contiguous(memory_format=memory_format)
        assert_close(result, reference, (*arguments_, lead, before))


def test_takes_a_slice(assert_close):
    x, *rest = arguments(1, 8, 2, (4, 6, 10), (2, 3, 5), torch.float32)
    wide = torch.cat((x, x), dim=4)
    given = (wide[..., :10], *rest)
    assert_close(ops.group_norm_silu(*given), reference, given)


def test_other_ratios_take_the_reference():
    given = arguments(1, 4, 2, (4, 5, 5), (3, 2, 2), torch.float32)
    assert torch.equal(group_norm_silu(*given), reference(*given))


def test_many_values_far_from_zero(assert_close):
    """A mean of a thousand deviations: a sum of squares in float32 would leave nothing of the variance."""
    x, *rest = arguments(1, 2, 1, (2, 128, 260), (2, 128, 260), torch.float32)
    given = (x + 2000, *rest)
    assert_close(group_norm_silu(*given), reference, given)


FAULTS = {
    "dropped chunk": ("chunk < chunks, other=0.0) * size", "chunk < chunks - 1, other=0.0) * size"),
    "first frame forgotten": ("tl.where(t == 0, 0, 1 + (t - 1)", "tl.where(t == 0, 1, 1 + (t - 1)"),
    "neighbouring group": (
        "group = sample * GROUPS + channel // (C // GROUPS)",
        "group = sample * GROUPS + channel // C",
    ),
    "no activation": ("value / (1.0 + tl.exp(-value))", "value"),
    "read from the lead": ("source = position - (tl.minimum(frame, LEAD)", "source = position - (tl.minimum(frame, 0)"),
    "latents of the lead": ("t = tl.maximum(frame - LEAD, 0)", "t = tl.minimum(frame, FRAMES - 1)"),
    "lead of the first frame": ("value = tl.where((frame < LEAD)", "value = tl.where((frame < 0)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(assert_close, broken, fault):
    # Only the chunks need many positions, of which there has to be more than one.
    size, low = ((5, 120, 121), (3, 60, 121)) if fault == "dropped chunk" else ((5, 12, 11), (3, 6, 11))
    given = arguments(1, 4, 2, size, low, torch.float16)
    given = (*given, 2, in_front(given[0], 2))
    result = broken("group_norm_silu", *FAULTS[fault]).launch(*given)
    with pytest.raises(AssertionError, match=r"allowed|finite"):
        assert_close(result, reference, given)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_operator(memory_format):
    given = arguments(1, 4, 2, (3, 2, 2), (2, 1, 2), torch.float32, memory_format)
    # Not test_aot_dispatch_dynamic: it decomposes the operator into its kernel, which the interpreter does not have.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(ops.group_norm_silu, given, test_utils=checks)
    opcheck(ops.group_norm_silu, (*given, 2, in_front(given[0], 2)), test_utils=checks)
