"""The compiled kernels on a GPU, where there is one: right in every dtype, past 2^31 elements, and inside a package."""

import pytest
import torch
from torch import nn

from consisid.kernels import group_norm_silu
from consisid.kernels.group_norm_silu import reference as group_norm_reference
from consisid.kernels.joint_attention import by_kernel, reference
from consisid.kernels.tools import autotune as tune
from consisid.kernels.tools.cases import SMALL, Size, cases

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Prime lengths, several blocks in every direction, the widths of the real network.
MEDIUM = Size(2, 226, 1051, 48, 64, 16, 32, 128, 32, (9, 48, 72), (3, 6, 9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [SMALL, MEDIUM], ids=["small", "medium"])
def test_equals_reference(assert_close, size, dtype):
    for case in cases(size, "cuda", dtype):
        assert_close(case.public(*case.arguments), case.reference, case.arguments)


@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("lengths", [(1, 1), (257, 1277), (1277, 64)])
def test_every_option_of_attention(assert_close, dim, lengths):
    queries, keys = lengths
    qkv = torch.randn(2, keys, 3, 3, dim, dtype=torch.bfloat16, device="cuda")
    q = torch.randn(2, queries, 3, dim, dtype=torch.bfloat16, device="cuda")
    given = (q, qkv[:, :, 1], qkv[:, :, 2], dim**-0.5)
    from triton.runtime.errors import OutOfResources

    ran = 0
    capability = torch.cuda.get_device_capability()
    for config in (*tune.candidates(capability), *tune.producers(capability, dim)):
        try:
            result = by_kernel(*given, config)
        except OutOfResources:  # what does not fit is passed over by the tuner too
            continue
        assert_close(result, reference, given)
        ran += 1
    assert ran


def test_more_than_two_to_the_31_elements(assert_close):
    shape = (1, 32, 17, 2048, 2048)
    if torch.cuda.mem_get_info()[0] < 6 * 2 * 32 * 17 * 2048 * 2048:
        pytest.skip("needs 28 GB")
    x = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
    low = torch.randn(1, 32, 5, 256, 256, dtype=torch.bfloat16, device="cuda")
    weight = torch.randn(32, dtype=torch.bfloat16, device="cuda")
    result = group_norm_silu(x, weight, weight, low, low, 32, 1e-6)
    for channel in (0, 31):  # groups of one channel do not know of the others
        one = slice(channel, channel + 1)
        given = (x[:, one], weight[one], weight[one], low[:, one], low[:, one], 1, 1e-6)
        assert_close(result[:, one], group_norm_reference, given)


def test_a_package_of_inductor_holds_the_kernels(tmp_path):
    """Compiled ahead of time and loaded again, a graph with every operator gives the same bytes."""

    class Everything(nn.Module):
        def forward(self, *arguments):
            results, rest = [], list(arguments)
            for case in listed:
                count = sum(isinstance(argument, torch.Tensor) for argument in case.arguments)
                given, rest = iter(rest[:count]), rest[count:]
                filled = [next(given) if isinstance(value, torch.Tensor) else value for value in case.arguments]
                results.append(case.public(*filled))
            return results

    listed = list(cases(SMALL, "cuda"))
    tensors = tuple(value for case in listed for value in case.arguments if isinstance(value, torch.Tensor))
    module = Everything()
    program = torch.export.export(module, tensors, strict=False)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "kernels.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    expected, found = (torch.utils._pytree.tree_leaves(run(*tensors)) for run in (module, loaded))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_same_input_same_bytes():
    for case in cases(MEDIUM, "cuda"):
        first, second = (torch.utils._pytree.tree_leaves(case.public(*case.arguments)) for _ in range(2))
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other), case.name
