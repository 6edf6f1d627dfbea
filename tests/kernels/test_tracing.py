"""The operators as torch.export and Inductor see them, on fake CUDA tensors and without a GPU."""

import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget

from consisid import kernels
from consisid.engine.backends.inductor import trace
from consisid.engine.graphs.table import graph_table
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY
from consisid.kernels import functions

pytestmark = pytest.mark.slow

BATCH, TEXT, VIDEO, HEADS, DIM = 2, 3, 8, 2, 64
WIDTH = HEADS * DIM


class Block(nn.Module):
    """Every operator of a transformer block once."""

    def forward(self, hidden, qkv, modulation, weight, square, head, cos, sin, face):
        normed = kernels.modulated_norm(hidden, modulation, weight, weight, TEXT, 1e-5)
        q, k = kernels.qk_norm_rope(qkv, head, head, head, head, cos, sin, HEADS, 1e-6)
        v = qkv.unflatten(-1, (3, HEADS, -1)).unbind(2)[2]
        update = kernels.joint_attention(q, k, v, DIM**-0.5).flatten(-2) + normed
        hidden, normed = kernels.gated_modulated_norm(
            hidden, update, modulation, modulation, weight, weight, TEXT, 1e-5
        )
        hidden = kernels.gated_residual(hidden, kernels.linear_gelu(normed, square, weight), modulation, TEXT)
        return (kernels.face_cross_attention(hidden, face, face, weight, weight, HEADS, TEXT, 1e-5),)


class Norm(nn.Module):
    def forward(self, x, weight, scale):
        return (kernels.group_norm_silu(x, weight, weight, scale, scale, 4, 1e-6),)


def block_inputs(device):
    def empty(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device=device)

    tokens = TEXT + VIDEO
    angles = empty(VIDEO, DIM // 2, dtype=torch.float32)
    hidden, qkv = empty(BATCH, tokens, WIDTH), empty(BATCH, tokens, 3 * WIDTH)
    weights, face = (empty(2, 3, WIDTH), empty(WIDTH), empty(WIDTH, WIDTH), empty(DIM)), empty(1, HEADS * 32, WIDTH)
    return hidden, qkv, *weights, angles, angles, face


def norm_inputs(device, memory_format=torch.contiguous_format):
    x, low = (torch.empty(1, 8, 3, size, size, device=device).to(memory_format=memory_format) for size in (8, 4))
    return x, torch.empty(8, device=device), low


def operators(graph):
    return [str(node.target).split(".")[1] for node in graph.nodes if str(node.target).startswith("consisid.")]


def export(module, inputs):
    return torch.export.export(module, inputs, strict=False)


BLOCK = ["modulated_norm", "qk_norm_rope", "joint_attention", "gated_modulated_norm", "linear_gelu", "gated_residual",
         "face_cross_attention"]  # fmt: skip


def test_every_operator_is_one_node_of_an_exported_graph():
    with FakeTensorMode():
        block, norm = block_inputs("cuda"), norm_inputs("cuda")
    program = export(Block(), block)
    assert operators(program.graph) == BLOCK
    result = next(node for node in program.graph.nodes if node.op == "output").args[0][0].meta["val"]
    assert (result.shape, result.dtype, result.device.type) == (block[0].shape, torch.bfloat16, "cuda")
    assert operators(program.run_decompositions().graph) == BLOCK
    assert operators(export(Norm(), norm).graph) == ["group_norm_silu"]


def test_on_a_cpu_the_references_are_traced():
    assert operators(export(Block(), block_inputs("cpu")).graph) == []
    assert operators(export(Norm(), norm_inputs("cpu")).graph) == []


PARTS = BLOCK[:-1]
REAL = {
    "block": (PREVIEW, dict.fromkeys(PARTS, 1)),
    "last_block": (PREVIEW, dict.fromkeys(PARTS, 1)),
    "face": (PREVIEW, {"face_cross_attention": 1}),
    "decode_first": (TINY, {"group_norm_silu": 29}),  # two layers a block; the full size takes ten seconds more
    "decode_next": (PREVIEW, {"group_norm_silu": 37}),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_graphs_hold_the_operators(name, monkeypatch):
    """At full size in bfloat16, as on a GPU: there `runs` is true, which it never is of the meta device."""
    for condition in ("runs", "linear_gelu_runs"):
        monkeypatch.setattr(functions, condition, lambda *given: True)
    variant, expected = REAL[name]
    graph = graph_table(variant, VideoShape.of(variant, None, None, None))[name]
    made = trace(graph, torch.device("meta"), torch.bfloat16).graph
    assert Counter(operators(made)) == expected
    # Nothing is copied to be joined; but the latents, behind the frames that the decoder's first convolution reads.
    joined = sum(node.target is torch.ops.aten.cat.default for node in made.nodes)
    assert joined == (1 if name.startswith("decode") else 0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_group_norm_keeps_the_memory_format(memory_format):
    with FakeTensorMode():
        x, weight, low = norm_inputs("cuda", memory_format)
        result = kernels.group_norm_silu(x, weight, weight, low, low, 4, 1e-6)
    assert result.is_contiguous(memory_format=memory_format)
    assert result.stride() == x.stride()


def test_lengths_may_be_dynamic():
    """A graph for any number of frames: the operators take a length that is not known while tracing."""
    with FakeTensorMode():
        hidden, _, modulation, weight, *_ = block_inputs("cuda")

    class Dynamic(nn.Module):
        def forward(self, hidden, modulation, weight):
            hidden = kernels.modulated_norm(hidden, modulation, weight, weight, TEXT, 1e-5)
            q = hidden.unflatten(-1, (HEADS, DIM))
            return kernels.joint_attention(q, q, q, 0.125)

    length = torch.export.Dim("length", min=TEXT + 1, max=100000)
    program = torch.export.export(
        Dynamic(), (hidden, modulation, weight), dynamic_shapes=({1: length}, None, None), strict=False
    )
    assert operators(program.graph) == ["modulated_norm", "joint_attention"]


class _Target:
    """The least of a Triton driver: for which GPU to compile. It cannot launch."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def target(monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", _Target())


WRITTEN = [
    {"normed_out"},
    {"q_out", "k_out"},
    {"hidden_out", "normed_out"},
    {"hidden_out"},
    {"folded", "sums", "offsets"},
    {"means", "rstds"},
    {"attention"},
    {"out"},
    {"means", "squares"},
    {"mean_out", "rstd_out"},
    {"out"},
]


@pytest.mark.usefixtures("target")
def test_inductor_sees_the_kernels_and_what_they_write():
    """As AOTAutograd hands the operators to Inductor: taken apart into kernels, of which only the outputs are written.

    A kernel whose inputs looked written would have them copied before every call.
    """
    written = []
    with FakeTensorMode(), torch.no_grad():
        for module, inputs in ((Block(), block_inputs("cuda")), (Norm(), norm_inputs("cuda"))):
            graph, _ = aot_export_module(module, inputs, trace_joint=False)
            calls = [node for node in graph.graph.nodes if str(node.target) == "triton_kernel_wrapper_functional"]
            written += [set(call.kwargs["tensors_to_clone"]) for call in calls]
            assert not set(operators(graph.graph)) - {"joint_attention", "linear_gelu"}
    assert written == WRITTEN


def test_importing_the_package_does_little():
    """No operator is registered and no compiler loaded."""
    program = """
import sys
import consisid.kernels
print([name for name in ("torch._inductor", "torch._dynamo", "consisid.kernels.ops") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
