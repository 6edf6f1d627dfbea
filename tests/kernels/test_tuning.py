"""What the dispatcher of joint_attention chooses, for GPUs that are not here."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime.errors import OutOfResources

from consisid.kernels import describe, measure, tune, tuning
from consisid.kernels.cases import SMALL, cases
from consisid.kernels.joint_attention import BACKENDS, reference

BF16, FP32 = torch.bfloat16, torch.float32
ROW = {"fastest": "ours", "config": {"block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2, "polynomial": 4}}


@pytest.fixture
def measured(monkeypatch):
    table = tuning.table() | {"measured": {"Some GPU": {tuning.shape_class(64, 17776): ROW}}}
    monkeypatch.setattr(tuning, "table", lambda: table)


@pytest.mark.usefixtures("measured")
def test_a_measured_row_is_used_where_it_applies():
    choice = tuning.look_up("Some GPU", (9, 0), BF16, 64, 20000)
    assert choice.implementation == "ours"
    assert choice.config == tuning.Config(64, 32, 4, 2, polynomial=4)
    assert choice.reason == "the fastest as measured on Some GPU for head_dim 64, long"
    others = (("Some GPU", BF16, 64, 100), ("Some GPU", BF16, 128, 20000), ("Other", BF16, 64, 20000))
    for gpu, dtype, dim, tokens in others:
        choice = tuning.look_up(gpu, (9, 0), dtype, dim, tokens)
        assert choice.implementation == "torch"
        assert "was not measured" in choice.reason
    assert tuning.look_up("Some GPU", (9, 0), FP32, 64, 20000).implementation == "torch"


def test_defaults_go_to_the_nearest_older_capability():
    assert tuning.default_config((9, 0), BF16).descriptors
    assert tuning.default_config((12, 1), BF16) == tuning.default_config((12, 0), BF16)
    assert tuning.default_config((8, 7), BF16) == tuning.default_config((8, 6), BF16)
    assert tuning.default_config((7, 5), BF16) == tuning.default_config((8, 0), BF16)
    assert not tuning.default_config((9, 0), FP32).descriptors


def test_the_file_holds_what_can_be_used():
    table = json.loads(tuning.PATH.read_text())
    for row in table["defaults"].values():
        tuning.Config(**row)
    for gpu, rows in table["measured"].items():
        for key, row in rows.items():
            assert row["fastest"] in ("ours", *BACKENDS), (gpu, key)
            assert row["fastest"] == min(row["milliseconds"], key=row["milliseconds"].get), (gpu, key)
            tuning.Config(**row["config"])
            assert row["versions"], (gpu, key)


def test_describe_without_a_gpu():
    assert describe("cpu", (2, 17776, 48, 64)).startswith("torch's scaled_dot_product_attention, because no kernel")


def test_tune_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = tuning.PATH.read_bytes()
    assert tune.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert tuning.PATH.read_bytes() == before


def test_candidates_are_distinct_and_valid():
    for capability in ((8, 0), (9, 0), (10, 0), (12, 0)):
        configs = list(tune.candidates(capability))
        assert len(configs) == len(set(configs))
        assert any(config.descriptors for config in configs) == (capability >= (9, 0))
        assert any(config.warp_specialize for config in configs) == (capability == (10, 0))


def test_a_row_is_written_beside_the_others(tmp_path, monkeypatch):
    path = tmp_path / "tuning.json"
    path.write_text(tuning.PATH.read_text())
    monkeypatch.setattr(tuning, "PATH", path)
    tune.write("Some GPU", "head_dim 64, long", ROW)
    tune.write("Some GPU", "head_dim 64, short", ROW)
    table = json.loads(path.read_text())
    assert list(table["measured"]["Some GPU"]) == ["head_dim 64, long", "head_dim 64, short"]
    assert table["defaults"] == json.loads(path.read_text())["defaults"]
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_is_right_can_win(monkeypatch, capsys):
    """With invented times: the quickest option is wrong, the next does not run; the quickest right one is chosen."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    configs = list(tune.candidates((9, 0)))
    wrong, broken, best = configs[3], configs[11], replace(configs[5], polynomial=2)

    def by_kernel(q, k, v, scale, config):
        if config == broken:
            raise OutOfResources(300000, 232448, "shared memory")
        return reference(q, k, v, scale * (2 if config == wrong else 1)).bfloat16()

    def time(runs, rounds):
        spent = {repr(wrong): 1.0, repr(broken): 2.0, repr(configs[5]): 4.0, repr(best): 3.0, "cudnn": 3.5, "ours": 3.0}
        return {name: spent.get(name, 10.0) for name in runs}

    monkeypatch.setattr(tune, "by_kernel", by_kernel)
    monkeypatch.setattr(tune, "by_torch", lambda q, k, v, scale, backend: reference(q, k, v, scale))
    monkeypatch.setattr(tune, "time", time)
    q, k, v = (torch.randn(1, 33, 2, 16, dtype=torch.bfloat16) for _ in range(3))
    times, config = tune.measure(q, k, v, 3)
    assert config == best
    assert times == {"flash": 10.0, "cudnn": 3.5, "efficient": 10.0, "ours": 3.0}
    assert "does not run: out of resource" in capsys.readouterr().out


@pytest.mark.parametrize("reason", [ValueError("a fault"), RuntimeError(""), IndexError(), torch.OutOfMemoryError()])
def test_a_fault_of_a_candidate_is_no_option_that_does_not_run(reason):
    def run():
        raise reason

    with pytest.raises(type(reason)):
        tune.error(run, torch.zeros(1, 1))


@pytest.mark.parametrize("reason", [RuntimeError("No available kernel."), OutOfResources(2, 1, "x")])
def test_an_option_that_does_not_run_is_passed_over(reason):
    def run():
        raise reason

    assert tune.error(run, torch.zeros(1, 1)) == float("inf")


def test_a_row_of_measurements(monkeypatch):
    """With invented times and no compiler: the share of the limit is that of the limiter."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(measure, "time", lambda runs, rounds: dict.fromkeys(runs, 2.0))
    case = next(cases(SMALL, "cpu", torch.float32))
    row = measure.row(case, flops=case.cost.flops / 1e-3, bandwidth=1e30, rounds=1)
    assert row["limiter"] == "arithmetic"
    assert row["share_of_limit"] == pytest.approx(0.5)
    assert row["largest_difference_from_pytorch"] == 0
    assert set(row["milliseconds"]) == {"ours", "pytorch", "compiled"}
