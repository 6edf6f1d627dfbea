"""The table of what each kernel takes of each architecture, and that a regression in it is seen and named."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

triton = pytest.importorskip("triton")

from consisid.kernels.aot import resources  # noqa: E402
from consisid.kernels.aot.record import record  # noqa: E402
from consisid.kernels.tools.cases import FULL, cases  # noqa: E402

pytestmark = pytest.mark.slow

KEPT = json.loads(resources.PATH.read_text())


@pytest.mark.parametrize("archs", [(89, 90, 100), pytest.param((80, 120), marks=pytest.mark.full)], ids=str)
def test_no_worse_than_the_table(archs):
    """One architecture of each kind of tensor core; `make test-all` compiles for the others."""
    if triton.__version__ != KEPT["triton"]:
        pytest.skip(f"the table was made with triton {KEPT['triton']}, this is {triton.__version__}")
    command = [sys.executable, "-m", "consisid.kernels.aot.resources", "--check", "--arch", *map(str, archs)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith(
        f"{sum(f'sm_{arch}' in row for row in KEPT['kernels'].values() for arch in archs)} kernels"
    )


def test_the_table_is_whole_and_has_no_faults():
    kernels = KEPT["kernels"]
    for name, row in kernels.items():
        if name.startswith("joint_attention "):  # variants of some architectures
            continue
        assert list(row) == [f"sm_{arch}" for arch in resources.TENSOR], name
    assert not [line for name in kernels for arch, row in kernels[name].items()
                for line in resources.faults(name, arch, row)]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registers": 255}, "joint_attention on sm_90: registers rose from"),
        ({"shared": 200000}, "joint_attention on sm_90: shared rose from"),
        ({"spills": 12}, "joint_attention on sm_90 spills registers"),
        ({"wgmma": 0, "mma": 128}, "joint_attention on sm_90 has no wgmma"),
        ({"shared": 300000}, "joint_attention on sm_90 wants 300000 bytes of shared memory"),
        ({"fp64": 3}, "joint_attention on sm_90 computes in double precision (3 instructions)"),
        ({"registers": 255, "warps": 16}, "joint_attention on sm_90 wants 255 registers for 16 warps"),
    ],
)
def test_a_regression_names_kernel_and_architecture(change, message):
    row = KEPT["kernels"]["joint_attention"]["sm_90"]
    made = {"joint_attention": {"sm_90": row | change}}
    assert any(line.startswith(message) for line in resources.regressions(KEPT["kernels"], made))
    assert not resources.regressions(KEPT["kernels"], {"joint_attention": {"sm_90": row}})


FLOATS = {  # file, parameter, launcher, name of the case, where in its launches
    "rope": ("qk_norm_rope", "EPS: tl.constexpr, HEADS", "launch", "qk_norm_rope", 0),
    "norm": ("modulated_norm", "EPS: tl.constexpr, C", "launch_norm", "modulated_norm", 0),
    "face": ("face_cross_attention", "EPS: tl.constexpr, C", "launch", "face_cross_attention", 1),
    "group": ("group_norm_silu", "EPS: tl.constexpr, BLOCK", "launch", "group_norm_silu", 1),
}


@pytest.mark.parametrize("which", FLOATS)
def test_a_float_that_is_an_argument_is_seen(broken, which):
    """As Inductor passes it, in float64: the sums that it is added to are computed in double precision."""
    file, parameter, launcher, name, place = FLOATS[which]
    module = broken(file, parameter, parameter.replace(": tl.constexpr", "", 1))
    arguments = next(case.arguments for case in cases(FULL, "meta") if case.name == name)
    launch = record(getattr(module, launcher), *arguments)[place]
    found = resources.measure(launch, 90)
    assert found.fp64 > 10
    assert any("double precision" in line for line in resources.faults(name, "sm_90", asdict(found)))


def test_a_table_of_another_triton_is_not_compared(tmp_path, monkeypatch, capsys):
    path = tmp_path / "resources.json"
    path.write_text(json.dumps({"triton": "2.0.0", "kernels": {}}))
    monkeypatch.setattr(resources, "PATH", path)
    assert resources.main(["--check"]) == 2
    assert "made with triton 2.0.0" in capsys.readouterr().err
