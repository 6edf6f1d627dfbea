"""torch.compile takes a graph whole: no break in it, and the operators of our kernels in it on a GPU."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

pytest.importorskip("triton")

from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.graphs.table import graph_table
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import TINY
from consisid.kernels import functions, whole

pytestmark = pytest.mark.slow

GRAPHS = graph_table(TINY, VideoShape.of(TINY, None, None, None))
BLOCK = ["modulated_norm", "qk_norm_rope", "joint_attention", "gated_modulated_norm", "linear_gelu", "gated_residual"]
CONDITIONS = ("runs", "linear_gelu_runs")  # which say whether an operator is called
OPERATORS = {"block": BLOCK, "last_block": BLOCK, "face": ["face_cross_attention"]}


def captured(graph, device):
    """The one graph that dynamo makes of a call, or an error where it would make several; and what the call gives."""
    torch._dynamo.reset()
    module, made = graph.module(), []
    weights = {name: torch.randn(shape, device=device) for name, shape in weight_shapes(module).items()}
    inputs = [spec.example({"B": 2}, torch.float32, device) for spec in graph.specs().values()]

    def keep(program, examples):
        made.append(program.graph)
        return program

    def call(*inputs):
        return functional_call(module, weights, inputs)

    with torch.no_grad():
        found, expected = torch.compile(call, fullgraph=True, backend=keep)(*inputs), call(*inputs)
    assert len(made) == 1
    return [name for node in made[0].nodes if (name := _ours(node))], found, expected


def _ours(node):
    return str(node.target).split(".")[1] if str(node.target).startswith("consisid.") else ""


@pytest.mark.parametrize("name", [*OPERATORS, "decode_first"])
def test_one_graph_on_a_cpu(name):
    operators, found, expected = captured(GRAPHS[name], "cpu")
    assert operators == []
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_one_graph_of_operators(name, monkeypatch):
    """On a CPU and without data; that a GPU's tensors are asked without a break is the next test."""
    for condition in CONDITIONS:
        monkeypatch.setattr(functions, condition, lambda x: True)
    with FakeTensorMode():
        operators, found, expected = captured(GRAPHS[name], "cpu")
    assert operators == OPERATORS[name]
    assert found.shape == expected.shape


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [("cuda", torch.bfloat16, "mul"), ("cuda", torch.float64, "add"), ("cpu", torch.float32, "add")],
)
def test_whether_a_kernel_runs_is_asked_without_a_break(condition, device, dtype, expected):
    """Also inside whole(), which is of other tracers."""
    runs = getattr(functions, condition)

    def call(x):
        return x.mul(2) if runs(x) else x.add(2)

    made = []
    for context in (nullcontext, whole):
        torch._dynamo.reset()
        with FakeTensorMode(), context():
            compiled = torch.compile(call, fullgraph=True, backend=lambda program, _: made.append(program) or program)
            compiled(torch.empty(3, device=device, dtype=dtype))
    calls = [[node.target for node in program.graph.nodes if node.op == "call_method"] for program in made]
    assert calls == [[expected]] * 2
