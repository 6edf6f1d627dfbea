"""FLOPs and bytes, against what is known of the whole network and against PyTorch's own count."""

from importlib import import_module

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from consisid.kernels import cost
from consisid.kernels.tools import benchmark as measure
from consisid.kernels.tools.cases import FULL, SMALL, cases

TOKENS, TEXT, WIDTH = 17776, 226, 3072
MODULES = {
    name: import_module(f"consisid.kernels.{name}")
    for name in ("joint_attention", "qk_norm_rope", "modulated_norm", "face_cross_attention", "group_norm_silu")
}


def test_attention_of_a_step():
    """42 blocks: 163.1 TFLOP a sample and step."""
    one = MODULES["joint_attention"].cost(1, TOKENS, TOKENS, 48, 64, 2)
    assert one.flops * 42 == pytest.approx(163.1e12, rel=1e-3)
    assert one.bytes == 4 * TOKENS * WIDTH * 2
    assert one.limiter(790e12, 4e12) == "arithmetic"


def test_attention_as_pytorch_counts():
    q, k = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 7, 16)
    with FlopCounterMode(display=False) as counter:  # it knows matrix products, not the fused operator on a CPU
        (q @ k.transpose(-1, -2)).softmax(-1) @ k
    assert counter.get_total_flops() == MODULES["joint_attention"].cost(2, 5, 7, 3, 16, 4).flops


def test_face_attention_as_pytorch_counts():
    hidden, keys, weight = torch.randn(2, 9, 32), torch.randn(1, 16, 32), torch.ones(32)
    with FlopCounterMode(display=False) as counter:
        MODULES["face_cross_attention"].reference(hidden, keys, keys, weight, weight, 2, 3, 1e-5)
    video = 2 * 6
    products = 2 * 2 * video * 32 * 16
    assert counter.get_total_flops() == products
    assert MODULES["face_cross_attention"].cost(2, 9, 3, 32, 2, 8, 4).flops == products + video * (8 * 32 + 4 * 16)


def test_face_attention_is_a_quarter_of_the_unfolded():
    """Unfolded, 21 face attentions have 9.4 TFLOP a sample and step."""
    folded = MODULES["face_cross_attention"].cost(1, TOKENS, TEXT, WIDTH, 16, 32, 2)
    assert 21 * folded.flops == pytest.approx(9.4e12 / 4, rel=0.03)
    assert folded.bytes == pytest.approx(2 * TOKENS * WIDTH * 2, rel=0.05)


def test_memory_bound_kernels_count_each_tensor_once():
    row = TOKENS * WIDTH * 2
    norm = MODULES["modulated_norm"].cost
    small = 6 * WIDTH * 2
    assert norm(1, TOKENS, WIDTH, 2, False, True).bytes == 2 * row + small
    assert norm(1, TOKENS, WIDTH, 2, True, False).bytes == 3 * row + small
    assert norm(1, TOKENS, WIDTH, 2, True, True).bytes == 4 * row + small
    # The fused form saves one reading of the hidden state.
    assert MODULES["qk_norm_rope"].cost(1, TOKENS, 48, 64, 2).bytes == 4 * row + TOKENS * 64 * 4
    silu = MODULES["group_norm_silu"].cost(1, 128, (9, 480, 720), (3, 60, 90), 2)
    assert silu.bytes == (3 * 128 * 9 * 480 * 720 + 2 * 128 * 3 * 60 * 90) * 2
    assert silu.limiter(60e12, 4e12) == "memory"


def test_seconds_are_those_of_the_limiter():
    work = cost.Cost(flops=100, bytes=10)
    assert work.seconds(10, 10) == 10
    assert work.seconds(1000, 1) == 10
    assert work.limiter(1000, 1) == "memory"


@pytest.mark.parametrize("case", list(cases(SMALL, "cpu", torch.float32)), ids=lambda case: case.name)
def test_every_case_is_a_call_of_its_function(case):
    """The arguments that are compiled and measured at full size, small: function and reference agree on a CPU."""
    torch.testing.assert_close(case.public(*case.arguments), case.reference(*case.arguments))
    assert case.cost.flops > 0
    assert case.cost.bytes > 0


def test_measure_without_a_gpu_lists_the_work(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert measure.main([]) == 2
    written = capsys.readouterr()
    *rows, footing = written.out.splitlines()
    names = [case.name for case in cases(FULL, "meta")]
    assert [row for row, name in zip(rows, names, strict=True) if not row.startswith(f"{name} ")] == []
    assert "a bound and not a measurement" in footing
    assert written.err.count("\n") == 1
