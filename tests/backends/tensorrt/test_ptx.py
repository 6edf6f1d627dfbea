"""Kernels as PTX that TensorRT launches: assembled for real by the tools in Triton's wheel, without a GPU."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

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
