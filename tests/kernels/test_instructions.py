"""The table of what attention's loop executes, how a disassembly is read for it, and that a regression is named."""

import json
import subprocess
import sys

import pytest
import torch

triton = pytest.importorskip("triton")

from consisid.kernels import dispatch  # noqa: E402
from consisid.kernels.aot import instructions, resources, sass  # noqa: E402

pytestmark = pytest.mark.slow

KEPT = json.loads(instructions.PATH.read_text())
ROWS = KEPT["rows"]


@pytest.mark.parametrize("archs", [(89, 90, 100), pytest.param((80, 120), marks=pytest.mark.full)], ids=str)
def test_no_worse_than_the_table(archs):
    """All variants, on one architecture of each kind of tensor core; `make test-all` compiles for the others."""
    if triton.__version__ != KEPT["triton"]:
        pytest.skip(f"the table was made with triton {KEPT['triton']}, this is {triton.__version__}")
    command = [sys.executable, "-m", "consisid.kernels.aot.instructions", "--check", "--arch", *map(str, archs)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert run.stdout.startswith(f"{sum(len(ROWS[f'sm_{arch}']) for arch in archs)} variants")


def test_the_table_is_whole_and_its_defaults_have_no_faults():
    assert list(ROWS) == [f"sm_{arch}" for arch in resources.TENSOR]
    for arch, rows in ROWS.items():
        number = int(arch.removeprefix("sm_"))
        assert list(rows) == [str(config) for config in instructions.variants(number)]
        default = dispatch.default_config((number // 10, number % 10), torch.bfloat16)
        assert next(iter(rows)) == str(default)
        assert not instructions.faults(arch, rows)


def test_what_the_default_of_hopper_is_better_than():
    """Until it was counted, attention on sm_90 issued more instructions than the tensor cores have cycles."""
    default, *_ = ROWS["sm_90"].values()
    before = ROWS["sm_90"]["128x128, 8 warps, 3 stages, polynomial 4, descriptors, ahead"]
    producer = ROWS["sm_90"]["128x128, 8 warps, 2 stages, descriptors, ahead, producer"]  # what its rule takes
    narrow = ROWS["sm_90"]["64x128, 4 warps, 2 stages, descriptors"]
    assert (before["instructions"], before["bound"]) == (9.84, 1260)
    assert default["tensor"] < default["bound"] < 1.04 * default["tensor"]
    assert producer["issue"] < 0.81 * default["tensor"] < default["issue"]
    assert producer["moves"] < 8 < 60 < default["moves"]
    # Half the queries in a program read twice the bytes, more than an A100's cache gives.
    assert narrow["loads"] > 5120 / 108 > default["loads"]


def test_a_polynomial_is_more_to_do_without_gain_where_the_tensor_cores_are_the_limit():
    for arch in ("sm_80", "sm_89", "sm_120"):
        (name, default), *_ = ROWS[arch].items()
        other = ROWS[arch][f"{name}, polynomial 4"]
        assert other["instructions"] > 1.4 * default["instructions"]
        assert other["bound"] >= default["bound"] == default["tensor"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instructions": 8.3}, "instructions rose from 8.08 to 8.3"),
        ({"registers": 255}, "registers rose from"),
        ({"spills": 12}, "the default, spills registers (12 instructions)"),
        ({"waits": 12}, "the default, waits 12 times for products"),
        ({"programs": 0}, "the default, does not fit onto a multiprocessor"),
        ({"bound": 1260}, "the default, is bound at 1260 cycles, 128x128"),
    ],
)
def test_a_regression_names_architecture_and_options(change, message):
    rows = dict(ROWS["sm_90"])
    name = next(iter(rows))
    rows[name] = rows[name] | change
    lines = instructions.regressions(ROWS, {"sm_90": rows})
    assert any(line.startswith(f"sm_90, {name}") and message in line for line in lines), lines
    assert not instructions.regressions(ROWS, {"sm_90": ROWS["sm_90"]})


def test_options_that_are_not_in_the_table_are_named():
    name, row = next(iter(ROWS["sm_80"].items()))
    lines = instructions.regressions({}, {"sm_80": {name: row}})
    assert lines == [f"sm_80, {name} is not in instructions.json: run make kernels"]


def test_a_table_of_another_triton_is_not_compared(tmp_path, monkeypatch, capsys):
    path = tmp_path / "instructions.json"
    path.write_text(json.dumps({"triton": "2.0.0", "rows": {}}))
    monkeypatch.setattr(instructions, "PATH", path)
    assert instructions.main(["--check"]) == 2
    assert "made with triton 2.0.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arch", "registers", "warps", "shared", "programs"),
    [
        (90, 170, 4, 65568, 2),  # 176 registers a thread are given out, three programs would have 67,584
        (90, 168, 4, 65568, 3),
        (90, 236, 8, 147520, 1),
        (80, 32, 4, 1024, 16),  # by warps
        (89, 64, 4, 49000, 2),  # by shared memory
        (89, 64, 4, 102000, 0),
    ],
)
def test_programs_that_fit(arch, registers, warps, shared, programs):
    assert instructions.count_programs(arch, registers, warps, shared) == programs


# A loop of one matrix product of a warp, a wait whose second attempts are behind the end, and an epilogue.
CODE = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R2, RZ ;
.L_x_2:
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R0], R2 ;
        /*0030*/              @!P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0050*/                   MUFU.EX2 R9, R9 ;
        /*0060*/              @P0  BRA `(.L_x_2) ;
        /*0070*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0080*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0090*/                   EXIT ;
.L_x_0:
        /*00a0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R0], R2 ;
        /*00b0*/              @!P1 BRA `(.L_x_0) ;
        /*00c0*/                   BRA `(.L_x_1) ;
.L_x_3:
        /*00d0*/                   BRA `(.L_x_3) ;
"""


def test_the_loop_is_what_comes_round_again():
    """Neither the epilogue, though an address behind it branches back before it, nor the attempts of the wait."""
    names = [one.name for one in sass.main_loop(CODE)]
    assert names == ["SYNCS.PHASECHK.TRANS64.TRYWAIT", "BRA", "HMMA.16816.F32.BF16", "MUFU.EX2", "BRA"]
    assert not sass.main_loop(CODE.replace("HMMA", "FFMA"))


def test_products_are_counted_by_their_sizes():
    loop = sass.main_loop(CODE)
    assert sass.product_flops(loop, warps=8) == 2 * 16 * 8 * 16 * 8
    group = [sass.Instruction("HGMMA.64x128x16.F32.BF16", "", "")] * 3
    assert sass.product_flops(group, warps=8) == 3 * 2 * 64 * 128 * 16 * 2
    assert sass.product_flops([sass.Instruction("UTCHMMA", "", "")], warps=8) == 0


def test_blocks_end_at_branches_and_labels():
    blocks = sass.parse(CODE)
    assert [len(block.instructions) for block in blocks] == [2, 2, 3, 3, 2, 1, 1]
    assert [block.following for block in blocks] == [(1,), (4, 2), (1, 3), (), (4, 5), (2,), (6,)]
    assert set(sass.dominators(blocks)) == {0, 1, 2, 3, 4, 5}  # the last, a trap behind the end, is never reached
