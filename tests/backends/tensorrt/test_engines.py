"""Engines by TensorRT for RTX from its wheel, for GPUs that this machine does not have: built, stored, refused here.

What runs an engine needs an NVIDIA GPU and is in test_gpu.py.
"""

import ctypes
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from support.drawn import random_weights

from consisid.engine import ConsisID
from consisid.engine.backends import backend
from consisid.engine.backends.tensorrt import build as trt_build
from consisid.engine.backends.tensorrt import library as trt
from consisid.engine.backends.tensorrt import run as trt_run
from consisid.engine.backends.tensorrt.backend import RTX, TENSORRT, TensorRT
from consisid.engine.backends.tensorrt.library import BuildOptions
from consisid.engine.backends.tensorrt.run import LoadedEngine
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.errors import BackendError, EngineError
from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.graphs.grouped import grouped_table
from consisid.engine.manifest import Manifest
from consisid.engine.runtime.executor import Held, executor
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import TINY
from consisid.export import build
from consisid.export.cli import main as build_main
from consisid.export.describe import describe_folder

from .bindings import RTX_ONLY, TABLE, used

pytestmark = [pytest.mark.order(-7), pytest.mark.slow]

installed = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
TARGETS = ("sm_89", "sm_120")
TABLE_3 = grouped_table(TINY, VideoShape.of(TINY, None, None, None), 3)
# No face, a shallow decoder, one chunk of frames: every kind of engine but the face's, in half a minute.
SMALL = replace(
    TINY, name="custom",
    transformer=replace(TINY.transformer, num_layers=2, is_train_face=False, sample_frames=9),
    vae=replace(TINY.vae, layers_per_block=1, block_out_channels=(8, 16, 16, 24)),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SMALL as an engine folder for two GPUs that are not here."""
    root = tmp_path_factory.mktemp("rtx")
    checkpoint = write_checkpoint(SMALL, root / "checkpoint")
    arguments = [str(checkpoint), "--output", str(root / "engine"), "--backend", "tensorrt-rtx", "--num-frames", "9"]
    arguments += ["--target", ",".join(TARGETS), "--layers-per-shard", "2", "--sequence", "2"]
    assert build_main(arguments) == 0
    return root / "engine"


@installed
def test_a_folder_for_other_gpus(folder):
    manifest = Manifest.read(folder)
    assert (manifest.spec.targets, manifest.spec.dtype, manifest.spec.device) == (TARGETS, "bfloat16", "cuda")
    assert manifest.provenance["tensorrt_rtx"] == RTX.api.__version__
    assert {"trunk_0", "text_layers_0", "modulations", "decode_first"} <= set(manifest.graphs)
    assert {"between_0", "between_1", "between_2"} <= set(manifest.graphs)  # for two devices
    for entry in manifest.graphs.values():
        assert (entry.backend, entry.weights) == ("tensorrt-rtx", [])
        assert (folder / entry.file).stat().st_size == entry.bytes > 0
    assert not list((folder / "graphs").glob("*.onnx*"))
    assert "a LoRA is not available on these engines" in describe_folder(manifest, folder)


@installed
def test_such_a_folder_is_refused_here(folder, monkeypatch):
    with pytest.raises(EngineError, match=r"built for GPUs of sm_89 or sm_120, and PyTorch sees no GPU"):
        ConsisID.open(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with pytest.raises(EngineError, match=r"this one is of sm_90; rebuild it with --target sm_90"):
        ConsisID.open(folder)


@installed
def test_joint_attention_stays_fused(exported, tmp_path):
    """The trunk in bfloat16, streamed, for both targets: an attention kernel per block, no stored scores."""
    file = exported(TABLE_3["trunk_0"], torch.bfloat16)
    built = RTX.build(file, tmp_path / "trunk.engine", BuildOptions(TARGETS))
    assert built.fused == 3
    assert 0 < built.weights <= built.bytes == (tmp_path / "trunk.engine").stat().st_size
    assert built.scratch > 0


@installed
def test_large_attention_that_no_kernel_takes_is_refused(tmp_path):
    """In float32 there is no fused kernel; scores of 2 GB are not stored silently."""
    io = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 8, 8192, 64]) for name in "qkvo"]
    node = onnx.helper.make_node("Attention", ["q", "k", "v"], ["o"], scale=1.0)
    graph = onnx.helper.make_graph([node], "attention", io[:3], io[3:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "attention.onnx")
    with pytest.raises(BackendError, match=r"refused to build attention: .*--backend inductor"):
        RTX.build(tmp_path / "attention.onnx", tmp_path / "a.engine", BuildOptions(("sm_89",)))
    assert not (tmp_path / "a.engine").exists()


PLUGIN_BUILD = """
import sys
from pathlib import Path
from consisid.engine.backends.tensorrt.backend import RTX, BuildOptions
folder = Path(sys.argv[1])
options = BuildOptions(("sm_89", "sm_120"), plugins=tuple(sys.argv[2:]))
RTX.build(folder / "trunk_1.onnx", folder / "plugin.engine", options)
"""


@installed
def test_an_engine_with_triton_plugins_holds_their_code(exported, tmp_path):
    pytest.importorskip("triton")
    exported(TABLE_3["trunk_1"], torch.bfloat16, {"B": 2})
    libraries = Path(importlib.util.find_spec("tensorrt_rtx_libs").submodule_search_locations[0])
    (tmp_path / "libtensorrt_rtx.so").symlink_to(libraries / "libtensorrt_rtx.so.1")
    command = [sys.executable, "-c", PLUGIN_BUILD, str(tmp_path), "joint_attention", "gated_residual"]
    subprocess.run(command, check=True, env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True)
    engine = (tmp_path / "plugin.engine").read_bytes()
    for kernel in (b"joint_attention_kernel", b"modulated_norm_kernel"):
        assert b".entry " + kernel in engine
    assert b".target sm_89" in engine  # the older of the targets: the newer runs it too
    assert b".target sm_120" not in engine
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "libtensorrt_rtx.so.1 only; link that file" in refused.stderr


@installed
def test_an_operator_that_is_not_taken_is_named_with_its_line(tmp_path):
    io = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    node = onnx.helper.make_node("Unheard", ["x"], ["y"], domain="nobody", name="strange")
    node.metadata_props.add(key="source", value="transformer.py:7")
    graph = onnx.helper.make_graph([node], "graph", io[:1], io[1:])
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("nobody", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "odd.onnx")
    expected = r"does not take the node strange \(Unheard\), from transformer.py:7, of odd: .*--backend inductor"
    with pytest.raises(BackendError, match=expected):
        RTX.build(tmp_path / "odd.onnx", tmp_path / "odd.engine", BuildOptions(("sm_89",)))


@installed
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tensorrt-rtx", "targets": ["sm_90"]}, r"does not build for sm_90; it builds for .*sm_89, sm_120"),
        ({"backend": "tensorrt-rtx", "targets": ["sm_89"], "flags": ["refit"]}, r"takes no LoRA; leave out --refit"),
        ({"backend": "inductor", "targets": ["sm_89"]}, r"inductor has no --target sm_89; add --backend tensorrt-rtx"),
        ({"backend": "eager", "flags": ["refit"]}, r"eager has no --refit"),
    ],
)
def test_builds_that_cannot_be(arguments, message, tmp_path):
    with pytest.raises(BackendError, match=message):
        build("tiny", tmp_path / "engine", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "flags", "level"),
    [
        (BuildOptions(streaming=False), set(), None),
        (BuildOptions(), {"WEIGHT_STREAMING"}, None),
        (BuildOptions(refit=True), {"WEIGHT_STREAMING", "REFIT"}, None),
        (BuildOptions(version_compatible=True), {"WEIGHT_STREAMING", "VERSION_COMPATIBLE"}, None),
        (BuildOptions(hardware_compatible=True), {"WEIGHT_STREAMING"}, "SAME_COMPUTE_CAPABILITY"),
    ],
)
def test_what_a_build_asks_of_the_library(options, flags, level):
    """Of a builder that writes down what it is asked."""
    config = SimpleNamespace(asked=set(), hardware_compatibility_level=None)
    config.set_flag = config.asked.add

    class Names:
        """An enumeration whose values are their names."""

        def __getattr__(self, name):
            return name

    api = SimpleNamespace(
        BuilderFlag=Names(), HardwareCompatibilityLevel=Names(), ProfilingVerbosity=SimpleNamespace(DETAILED=2)
    )
    library, network = SimpleNamespace(api=api), SimpleNamespace(num_inputs=0)
    trt_build._configure(library, SimpleNamespace(create_builder_config=lambda: config), network, options)
    assert config.asked == flags
    assert config.hardware_compatibility_level == level
    assert config.profiling_verbosity == 2


def test_a_library_that_is_missing():
    with pytest.raises(BackendError, match=r"needs nowhere, which cannot be .*pip install 'consisid\[extra\]'"):
        TensorRT("x", "nowhere", "extra").api  # noqa: B018


def test_no_gpu_and_an_old_driver(monkeypatch):
    with pytest.raises(BackendError, match="run on an NVIDIA GPU, and there is none"):
        RTX.check(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(trt, "driver_version", lambda: 12080)
    with pytest.raises(BackendError, match=r"The NVIDIA driver knows CUDA 12.8 and tensorrt_rtx needs 13.0; update"):
        RTX.check(torch.device("cuda"))


def test_a_builder_out_of_memory():
    error = trt_build.refusal("tensorrt", "trunk_0", ["[defaultAllocator] Out of memory", "no plan"])
    assert "ran out of memory while it built trunk_0; put fewer layers in a shard (--layers-per-shard)" in str(error)
    assert "refused to build x: no plan" in str(trt_build.refusal("tensorrt", "x", ["no plan"]))


class _FakeLibrary:
    """What of TensorRT an engine is read and refitted by; weights are those that each engine was given."""

    def __init__(self, known):
        self.api = self
        self.log, self.known, self.read = SimpleNamespace(clear=lambda: None), known, []

    def Runtime(self, log):
        return self

    def deserialize_cuda_engine(self, plan):
        self.read.append({})
        return SimpleNamespace(refittable=True, given=self.read[-1], streamable_weights_size=0)

    def Refitter(self, engine, log):
        return SimpleNamespace(
            set_named_weights=lambda name, weights: (
                name in self.known and (engine.given.update({name: weights}) or True)
            ),
            refit_cuda_engine_async=lambda stream: True,
        )

    def Weights(self, kind, address, count):
        return (ctypes.c_float * count).from_address(address)[:]

    DataType = SimpleNamespace(**dict.fromkeys(("FLOAT", "HALF", "BF16", "INT64", "INT32", "BOOL", "UINT8")))


def test_an_engine_that_is_read_again_has_its_lora_again(tmp_path, monkeypatch):
    """Streaming closes engines with their stage; what was replaced is no part of the file."""
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    (tmp_path / "x.engine").write_bytes(b"plan")
    library = _FakeLibrary(known=["a"])
    engine = LoadedEngine(library, tmp_path / "x.engine", torch.device("cpu"))
    assert engine.streamable == 0
    engine.refit({"a": torch.tensor([1.5, 2.0])})
    for _ in range(2):
        assert engine.engine.given == {"a": [1.5, 2.0]}
        engine.close()
    engine.refit({"b": torch.zeros(2)})
    for _ in range(2):
        with pytest.raises(BackendError, match=r"x.engine has no weights b to be replaced.* or use --backend inductor"):
            engine.engine  # noqa: B018
    engine.refit({})  # unloaded
    assert engine.engine.given == {}


class _FakeRuntime:
    def __init__(self, bits):
        self.bits = bits

    def get_engine_validity(self, plan):
        return None, self.bits


@installed
@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("VERSION_MISMATCH", r"x.engine was built by another version of tensorrt_rtx than \d.*rebuild"),
        ("UNSUPPORTED_CC", r"x.engine was built for another GPU; rebuild the folder with --target"),
        ("OLD_CUDA_DRIVER", r"needs a newer NVIDIA driver; update it"),
        ("INSUFFICIENT_GPU_MEMORY", r"does not fit into the memory of this GPU; give a memory budget"),
    ],
)
def test_an_engine_of_another_gpu_or_version(cause, message):
    bits = int(getattr(RTX.api.EngineInvalidityDiagnostics, cause))
    assert re.search(message, str(trt_run.invalid(RTX, _FakeRuntime(bits), b"", Path("x.engine"))))


@installed
def test_a_damaged_engine():
    """TensorRT for RTX's own word, which needs no GPU."""
    runtime = RTX.api.Runtime(RTX.log)
    assert "x.engine is damaged; rebuild" in str(trt_run.invalid(RTX, runtime, b"not an engine" * 99, Path("x.engine")))


def test_a_library_without_diagnostics_gives_its_last_word():
    log = SimpleNamespace(errors=["first", "last"])
    fake = SimpleNamespace(package="tensorrt", log=log, api=SimpleNamespace(__version__="11.4"))
    error = trt_run.invalid(fake, object(), b"", Path("x.engine"))
    assert "cannot be loaded by tensorrt 11.4 (last); rebuild the folder here" in str(error)


@pytest.mark.parametrize("budget", [0, 10, 1000])
def test_a_budget_is_divided_in_proportion(budget):
    found = trt_run.shares(budget, {"a": 30, "b": 10})
    assert sum(found.values()) <= max(budget, 0)
    assert found["a"] == min(30, budget * 3 // 4)
    assert trt_run.shares(5, {}) == {}


def test_shards_make_the_same_video(tiny, tiny_folder):
    """The whole loop by shards of three layers and of one, run by PyTorch: the seam, not TensorRT."""
    from support.people import random_identity

    other = ConsisID.open(tiny_folder)
    names = {name: list(weight_shapes(graph.module())) for name, graph in TABLE_3.items()}
    runners = {name: backend("eager").load(g, None, other.device, names[name]) for name, g in TABLE_3.items()}
    weights = Held({name: [other.weights._store.layer(g, names[name], 0)] for name, g in TABLE_3.items()})
    other._networks[other.shape] = executor(TINY, runners, weights, other.device, other.dtype, 3)
    options = {"seed": 3, "num_inference_steps": 2, "output_type": "latent"}
    ours, theirs = (e.generate(random_identity(TINY), "A person walks.", **options).latents for e in (other, tiny))
    assert (ours - theirs).abs().max() < 1e-5  # modulations are stacked inside a graph instead of outside


def test_api_check():
    """Every name of TensorRT that our code uses is in the bindings of both major versions; see trt_bindings.py."""
    table = json.loads(TABLE.read_text())
    assert {version.split(".")[0] for version in table} == {"10", "11"}
    for version, names in table.items():
        assert used() - set(names) <= RTX_ONLY, version


@installed
def test_api_check_of_signatures():
    """Positions and keywords that our code passes, in the docstrings of bindings that can be imported."""
    api = RTX.api
    expected = {
        "IExecutionContext.set_tensor_address": "name: str, memory",
        "IExecutionContext.set_input_shape": "name: str, shape: tuple",
        "IExecutionContext.execute_async_v3": "stream_handle",
        "IExecutionContext.set_optimization_profile_async": "profile_index: typing.SupportsInt, stream_handle",
        "IExecutionContext.set_device_memory": "memory: typing.SupportsInt, size",
        "ICudaEngine.get_tensor_profile_shape": "name: str, profile_index",
        "IBuilderConfig.set_timing_cache": "ignore_mismatch: bool",
        "IBuilderConfig.set_compute_capability": "compute_capability: ",
        "Refitter.set_named_weights": "name: str, weights",
        "Refitter.refit_cuda_engine_async": "stream_handle",
    }
    for path, text in expected.items():
        owner, _, member = path.partition(".")
        assert text in inspect.getdoc(getattr(getattr(api, owner), member)), path
    assert TENSORRT.package == "tensorrt"
    assert random_weights(TABLE_3["head"])
