"""Kernels as PTX that TensorRT launches: assembled for real by the tools in Triton's wheel, without a GPU."""

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
import torch

from consisid.engine.backends.tensorrt.ptx import Kernel
from consisid.engine.errors import BackendError
from consisid.kernels.aot import ptx as standalone
from consisid.kernels.aot.ptx import STANDALONE, Code, compile_standalone, without_scratch

triton = pytest.importorskip("triton")
B, S, H, D, TEXT = 2, 302, 3, 64, 32
C = H * D
CALLS = {
    "joint_attention": ([(B, S, H, D)] * 3, [0.125]),
    "modulated_norm": ([(B, S, C), (2, 3, C), (C,), (C,)], [TEXT, 1e-5]),
    "gated_residual": ([(B, S, C), (B, S, C), (2, 3, C)], [TEXT]),
    "gated_modulated_norm": ([(B, S, C), (B, S, C), (2, 3, C), (2, 3, C), (C,), (C,)], [TEXT, 1e-5]),
}


@pytest.mark.parametrize("name", STANDALONE)
def test_the_parameters_are_the_tensors(name, tmp_path):
    shapes, attributes = CALLS[name]
    code = compile_standalone(name, shapes, torch.bfloat16, attributes, 89)
    entry = re.search(r"\.entry (\w+)\((.*?)\)", code.ptx, re.DOTALL)
    assert entry[1] == code.entry
    assert entry[2].count(".param .u64") == entry[2].count(".param") == len(STANDALONE[name].parameters)
    assert STANDALONE[name].inputs == len(shapes)
    (tmp_path / "kernel.ptx").write_text(code.ptx)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    subprocess.run([tools / "ptxas", "-arch=sm_89", "kernel.ptx", "-o", "kernel.cubin"], cwd=tmp_path, check=True)
    assert Code.loads(code.dumps()) == code
    programs = {"joint_attention": (-(-S // 128), H, B)}.get(name, (B * S, 1, 1))
    assert code.grid == programs or name == "joint_attention"
    assert code.grid[1:] == programs[1:]


def test_a_kernel_that_reads_its_scratch_is_refused():
    ptx = ".entry k(\n.param .u64 k_param_0,\n.param .u64 k_param_1\n)\n{ ld.param.u64 %rd1, [k_param_1]; }"
    with pytest.raises(ValueError, match="reads k_param_1"):
        without_scratch(ptx, 1)
    assert "k_param_1" not in without_scratch(ptx.replace("[k_param_1]", "[k_param_0]"), 1)


def test_inputs_come_before_outputs():
    """TensorRT's order of addresses."""
    for row in STANDALONE.values():
        outputs = [name for name in row.parameters if name.endswith("out")]
        assert list(row.parameters[-row.outputs :]) == outputs
    assert standalone.STANDALONE["gated_modulated_norm"].outputs == 2


class Driver:
    """The CUDA driver as far as a launch asks it: a module is 5, its function 6; from `fails` on it refuses."""

    def __init__(self, fails=""):
        self.fails, self.loaded, self.shared, self.launched = fails, [], [], []

    def cuModuleLoadData(self, module, ptx):
        self.loaded.append(ptx)
        module._obj.value = 5
        return 218 if self.fails == "load" else 0

    def cuModuleGetFunction(self, function, module, name):
        assert (module.value, name) == (5, b"kernel")
        function._obj.value = 6
        return 0

    def cuFuncSetAttribute(self, function, attribute, value):
        assert (function.value, attribute) == (6, 8)
        self.shared.append(value)
        return 0

    def cuLaunchKernel(self, function, *rest):
        *sizes, stream, pointers, more = rest
        assert more is None
        addresses = [ctypes.c_uint64.from_address(pointer).value for pointer in pointers]
        self.launched.append((function.value, sizes, stream.value, addresses))
        return 999 if self.fails == "launch" else 0

    def cuGetErrorName(self, result, name):
        if result == 218:
            name._obj.value = b"CUDA_ERROR_INVALID_PTX"
        return 0


@pytest.mark.parametrize(("shared", "asked"), [(48 * 1024, []), (48 * 1024 + 1, [48 * 1024 + 1])])
def test_a_launch_by_the_driver(shared, asked, monkeypatch):
    """The code is loaded once; memory that a kernel does not have by itself is asked for."""
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", {"libcuda.so.1": driver}.__getitem__)
    kernel = Kernel(Code("kernel", ".ptx", (3, 2, 1), 128, shared))
    assert not driver.loaded
    addresses = ([2**40, 17, 2**63], [1, 2, 3])
    for each in addresses:
        kernel.launch(each, 99)
    assert driver.loaded == [b".ptx"]
    assert driver.shared == asked
    assert driver.launched == [(6, [3, 2, 1, 128, 1, 1, shared], 99, each) for each in addresses]


def test_what_the_driver_refuses(monkeypatch):
    code = Code("kernel", ".ptx", (1, 1, 1), 32, 0)
    for fails, reason in (("load", "CUDA_ERROR_INVALID_PTX"), ("launch", "an unknown error")):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, fails=fails: Driver(fails))
        with pytest.raises(BackendError, match=f"The CUDA driver refused kernel: {reason}; rebuild the engine on"):
            Kernel(code).launch([1], 0)

    def missing(name):
        raise OSError("no such file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(BackendError, match=r"driver cannot be loaded \(no such file\); install the NVIDIA driver"):
        Kernel(code).launch([1], 0)
