"""joint_attention_gluon.py in an emulator (gluon_emulator.py): its numbers, and that its barriers keep what is read.

On a GPU test_gpu.py runs it with all other options.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from . import gluon_emulator

pytest.importorskip("triton")

from consisid.kernels.joint_attention import LOG2_E, reference

pytestmark = pytest.mark.slow

SOURCE = Path(importlib.util.find_spec("consisid.kernels.joint_attention_gluon").origin)
ROWS, BLOCK_N = 8, 16  # sizes that the emulator has, and matrix units do not
# batch, queries, keys, heads, head_dim: one block and many, whole and short ones, queries of one group and of none
SHAPES = [(2, 13, 37, 3, 16), (1, 1, 1, 1, 16), (1, 40, 16, 1, 16), (1, 17, 33, 2, 32), (1, 5, 160, 1, 16)]


@pytest.fixture(scope="module")
def ours():
    return gluon_emulator.load(SOURCE, "consisid.kernels.emulated_gluon")


def arguments(batch, queries, keys, heads, dim):
    qkv = torch.randn(batch, keys, 3, heads, dim)
    return torch.randn(batch, queries, heads, dim), qkv[:, :, 1] * 3, qkv[:, :, 2], dim**-0.5


def emulate(module, q, k, v, scale, slots=2):
    return gluon_emulator.run(module, q, k, v, scale * LOG2_E, BLOCK_N, slots, ROWS)


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(assert_close, ours, shape, slots):
    given = arguments(*shape)
    for _ in range(3):  # threads run in another order each time
        assert_close(emulate(ours, *given, slots), reference, given)


FAULTS = {
    "one group frees a slot": ("init(empty_k.index(slot), count=2)", "init(empty_k.index(slot), count=1)"),
    "a slot is free from the start to the end": ("free = ((i // SLOTS) & 1) ^ 1", "free = 1"),
    "values are free while they are read": (
        "    result = warpgroup_mma_wait(0, deps=(summing,))\n    mbarrier.arrive(empty_v.index(before))\n",
        "    mbarrier.arrive(empty_v.index(before))\n    result = warpgroup_mma_wait(0, deps=(summing,))\n",
    ),
    "values are read before they are there": (
        "    mbarrier.wait(full_v.index(before), ((i - 1) // SLOTS) & 1)\n", ""
    ),
    "the first slot is never free again": ("    mbarrier.arrive(empty_k.index(0))\n", ""),
    "the tail is not masked": ("(i * BLOCK_N + column < length)", "(i * BLOCK_N + column < length + BLOCK_N)"),
    "the only block is not masked": ("(column < length)[None, :]", "(column < length + BLOCK_N)[None, :]"),
    "the result is not shrunk": ("    summing = warpgroup_mma(left, _tile(values, before, BLOCK_N, D), result,",
                                 "    summing = warpgroup_mma(left, _tile(values, before, BLOCK_N, D), result * 1.01,"),
    "the second group has the first one's queries": ("(_compute, (two, keys,", "(_compute, (one, keys,"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(assert_close, monkeypatch, tmp_path, fault):
    right, wrong = FAULTS[fault]
    source = SOURCE.read_text()
    assert source.count(right) == 1, f"{right!r} is there {source.count(right)} times"
    file = tmp_path / "broken.py"
    file.write_text(source.replace(right, wrong))
    module = gluon_emulator.load(file, "consisid.kernels.broken_gluon")
    monkeypatch.setattr(gluon_emulator, "SECONDS", 1.0)
    caught = []
    for shape in ((1, 16, 150, 1, 16), (1, 16, 9, 1, 16)):
        given = arguments(*shape)
        for _ in range(20):
            try:
                assert_close(emulate(module, *given), reference, given)
            except (AssertionError, gluon_emulator.Deadlock) as reason:
                caught.append(reason)
                break
    assert caught
