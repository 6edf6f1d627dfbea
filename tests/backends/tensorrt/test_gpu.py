"""What only a GPU can show. Skipped by name where there is none; nothing here is imitated."""

import pytest
import torch
from support.drawn import random_weights

from consisid.engine.backends import backend
from consisid.engine.backends.tensorrt.backend import RTX, TENSORRT
from consisid.engine.backends.tensorrt.library import BuildOptions
from consisid.engine.backends.tensorrt.ptx import Kernel
from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.graphs.grouped import grouped_table
from consisid.engine.runtime.cuda_graphs import Buffers, Captured, CudaRecorder
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import TINY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
GRAPH = grouped_table(TINY, VideoShape.of(TINY, None, None, None), 3)["trunk_0"]


@pytest.fixture(params=[TENSORRT, RTX], ids=lambda each: each.name)
def engine(request, exported, tmp_path):
    pytest.importorskip(request.param.package)
    file = exported(GRAPH, torch.bfloat16)
    request.param.build(file, tmp_path / "trunk.engine", BuildOptions(refit=request.param is TENSORRT))
    return request.param.load(GRAPH, tmp_path / "trunk.engine", torch.device("cuda"), [])


def inputs(batch):
    torch.manual_seed(0)
    return [spec.example({"B": batch}, torch.bfloat16, "cuda") for spec in GRAPH.specs().values()]


def error(engine, given):
    weights = [w.cuda() for w in random_weights(GRAPH)]
    names = list(weight_shapes(GRAPH.module()))
    run = backend("eager").load(GRAPH, None, torch.device("cuda"), names)
    right = run([x.float() for x in given], weights)
    got = engine(given, ())
    return float((got.float() - right).norm() / right.norm())


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_an_engine_equals_eager(engine, batch):
    assert error(engine, inputs(batch)) < 2e-2  # bfloat16 over three blocks


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_streamed_weights_give_the_same_bytes(engine, share):
    right = engine(inputs(2), ())
    engine.limit(int(share * engine.streamable))
    assert torch.equal(engine(inputs(2), ()), right)


def test_a_captured_call_gives_the_same_bytes(engine):
    given = inputs(2)
    run = Captured(engine, CudaRecorder(), Buffers(), keep=True)
    run(given, ())  # what happens at first use cannot be captured
    assert torch.equal(run(given, ()), engine(given, ()))


def test_refit_replaces_weights_until_it_is_undone(engine):
    if not engine.engine.refittable:
        pytest.skip("this library builds refittable engines on a GPU only with TensorRT")
    before = engine(inputs(2), ())
    weights = dict(zip(weight_shapes(GRAPH.module()), random_weights(GRAPH, torch.bfloat16), strict=True))
    name = "transformer_blocks.0.attn1.to_out.0.weight"
    engine.refit({name: weights[name] + 0.1})
    changed = engine(inputs(2), ())
    assert not torch.equal(changed, before)
    engine.close()
    assert torch.equal(engine(inputs(2), ()), changed)
    engine.refit({})
    assert torch.equal(engine(inputs(2), ()), before)


def test_ptx_by_the_driver_equals_the_launch_by_triton():
    from consisid.kernels.aot.ptx import compile_standalone
    from consisid.kernels.dispatch import default_config
    from consisid.kernels.joint_attention import by_kernel

    q, k, v = torch.randn(3, 2, 302, 3, 64, device="cuda", dtype=torch.bfloat16).unbind(0)
    major, minor = torch.cuda.get_device_capability()
    code = compile_standalone("joint_attention", [q.shape] * 3, q.dtype, [0.125], 10 * major + minor)
    out = torch.empty_like(q)
    addresses = [x.data_ptr() for x in (q, k, v, out)]
    Kernel(code).launch(addresses, torch.cuda.current_stream().cuda_stream)
    config = default_config((8, 0) if major >= 9 else (major, minor), q.dtype)
    assert torch.equal(out, by_kernel(q, k, v, 0.125, config))
