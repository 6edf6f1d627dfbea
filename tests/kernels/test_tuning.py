"""What the dispatcher of joint_attention chooses, for GPUs that are not here."""

import json
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime.errors import OutOfResources

from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, V1_5
from consisid.kernels import describe, dispatch
from consisid.kernels.aot import instructions
from consisid.kernels.attention_others import BACKENDS, PACKAGES, reference
from consisid.kernels.tools import autotune as tune
from consisid.kernels.tools import benchmark as measure
from consisid.kernels.tools.cases import SMALL, cases

BF16, FP32 = torch.bfloat16, torch.float32
ROW = {
    "fastest": "ours",
    "config": {"block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2, "polynomial": 4},
    "milliseconds": {"flash": 3.0, "ours": 1.0, "cudnn": 2.0},
}


@pytest.fixture
def measured(monkeypatch):
    table = dispatch.table() | {"measured": {"Some GPU": {dispatch.shape_class(64, 17776): ROW}}}
    monkeypatch.setattr(dispatch, "table", lambda: table)


@pytest.mark.usefixtures("measured")
def test_a_measured_row_is_used_where_it_applies():
    choice = dispatch.look_up("Some GPU", (7, 5), BF16, 64, 20000)
    assert choice.implementation == "ours"
    assert choice.config == dispatch.Config(64, 32, 4, 2, polynomial=4)
    assert choice.reason == "the fastest as measured on Some GPU for head_dim 64, long"
    others = (("Some GPU", BF16, 64, 100), ("Some GPU", BF16, 128, 20000), ("Other", BF16, 64, 20000))
    for gpu, dtype, dim, tokens in others:
        choice = dispatch.look_up(gpu, (7, 5), dtype, dim, tokens)
        assert choice.implementation == "torch"
        assert "was not measured" in choice.reason
    assert dispatch.look_up("Some GPU", (9, 0), FP32, 64, 20000).implementation == "torch"


@pytest.mark.usefixtures("measured")
def test_a_measured_row_goes_before_a_rule_and_takes_the_next_best_where_the_best_is_missing():
    assert dispatch.look_up("Some GPU", (9, 0), BF16, 64, 20000).implementation == "ours"
    choice = dispatch.look_up("Some GPU", (9, 0), BF16, 64, 20000, lambda name: name != "ours")
    assert choice.implementation == "cudnn"
    assert choice.reason == "as measured on Some GPU for head_dim 64, long; not usable here: ours"


RULES = {
    ("NVIDIA H100 80GB HBM3", (9, 0)): ["fa3", "ours", "cudnn", "fa4", "flash"],
    ("NVIDIA H200", (9, 0)): ["fa3", "ours", "cudnn", "fa4", "flash"],
    ("NVIDIA A100-SXM4-80GB", (8, 0)): ["flash", "ours", "cudnn"],
    ("NVIDIA GeForce RTX 4090", (8, 9)): ["flash", "ours", "cudnn"],
    ("NVIDIA L40S", (8, 9)): ["flash", "ours", "cudnn"],
    ("NVIDIA GeForce RTX 5090", (12, 0)): ["cudnn", "flash", "ours"],
    ("NVIDIA B200", (10, 0)): ["fa4", "cudnn", "ours", "flash"],
}


@pytest.mark.parametrize(("gpu", "capability"), RULES)
def test_gpus_that_nobody_measured_go_by_rule(gpu, capability):
    """Whatever is missing is passed over, down to PyTorch's own choice."""
    missing = []
    for name in [*RULES[gpu, capability], "torch"]:
        choice = dispatch.look_up(gpu, capability, BF16, 64, 17776, lambda name: name not in missing)
        assert choice.implementation == name
        assert choice.config.producer == (capability == (9, 0))
        assert choice.config.producer or choice.config == dispatch.default_config(capability, BF16)
        assert choice.reason.startswith("by rule until measured: ")
        assert choice.reason.endswith(f"; not usable here: {', '.join(missing)}") == bool(missing)
        missing.append(name)


def test_a_rule_is_for_the_shapes_that_its_figures_are_of():
    for dim, tokens, dtype in ((64, 500, BF16), (128, 17776, BF16), (64, 17776, FP32)):
        assert dispatch.look_up("NVIDIA H200", (9, 0), dtype, dim, tokens).implementation == "torch"


def test_defaults_go_to_the_nearest_older_capability():
    assert dispatch.default_config((9, 0), BF16).descriptors
    assert dispatch.default_config((12, 1), BF16) == dispatch.default_config((12, 0), BF16)
    assert dispatch.default_config((8, 7), BF16) == dispatch.default_config((8, 6), BF16)
    assert dispatch.default_config((7, 5), BF16) == dispatch.default_config((8, 0), BF16)
    assert not dispatch.default_config((9, 0), FP32).descriptors


def test_the_file_holds_what_can_be_used():
    table = json.loads(dispatch.PATH.read_text())
    known = {"ours", *BACKENDS, *PACKAGES}
    for row in table["defaults"].values():
        dispatch.Config(**row)
    for gpu, rows in table["measured"].items():
        for key, row in rows.items():
            assert row["fastest"] in known, (gpu, key)
            assert row["fastest"] == min(row["milliseconds"], key=row["milliseconds"].get), (gpu, key)
            dispatch.Config(**row["config"])
            assert row["versions"], (gpu, key)
    for capability, row in table["by_rule"].items():
        assert known.issuperset(row["order"]), capability
        assert set(row) - {"config"} == {"gpus", "shapes", "order", "source"}
        dispatch.Config(**row.get("config", table["defaults"]["9.0"]))
        assert row["source"].startswith("by rule until measured: ")


def test_tune_measures_packages_that_are_installed(bench, own, monkeypatch):
    monkeypatch.setattr(tune, "package_works", lambda name, device, dtype: name == "fa3")
    monkeypatch.setattr(tune, "by_package", lambda q, k, v, scale, name: reference(q, k, v, scale))
    bench.spent["fa3"] = 2.5
    assert bench.run() == 0
    assert row_of(own)["fastest"] == "fa3"
    assert "fa4" not in row_of(own)["milliseconds"]


def test_describe_without_a_gpu():
    assert describe("cpu", (2, 17776, 48, 64)).startswith("torch's scaled_dot_product_attention, because no kernel")


def test_tune_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = dispatch.PATH.read_bytes()
    assert tune.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert dispatch.PATH.read_bytes() == before


def test_candidates_are_distinct_and_valid():
    for capability in ((8, 0), (9, 0), (10, 0), (12, 0)):
        configs = list(tune.candidates(capability))
        assert len(configs) == len(set(configs))
        assert any(config.descriptors for config in configs) == (capability >= (9, 0))
        assert any(config.warp_specialize for config in configs) == (capability == (10, 0))
        assert any(config.unrolled for config in configs) == (capability == (9, 0))
        assert all(config.ahead for config in configs if config.unrolled)


def test_what_might_not_end_is_tried_last():
    assert [config.producer for config in tune.producers((9, 0), 64)] == [True] * 4
    assert not [*tune.producers((9, 0), 32), *tune.producers((8, 9), 64), *tune.producers((10, 0), 64)]
    assert not any(config.producer for config in tune.candidates((9, 0)))


def test_polynomials_are_tried_where_the_exponentials_are_the_limit():
    """With the tensor cores of Ampere, Ada and Blackwell's RTX cards they are not, and a polynomial is more to do."""
    for arch, rows in json.loads(instructions.PATH.read_text())["rows"].items():
        capability = divmod(int(arch.removeprefix("sm_")), 10)
        row = rows[str(replace(dispatch.default_config(capability, BF16), polynomial=0))]
        assert bool(tune.polynomials(capability)) == (row["exps"] > row["tensor"]), arch
        if not tune.polynomials(capability):
            assert dispatch.default_config(capability, BF16).polynomial == 0


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The table of the package, as a file that may be written."""
    path = tmp_path / "package" / "tuning.json"
    path.parent.mkdir()
    path.write_text(dispatch.PATH.read_text())
    monkeypatch.setattr(dispatch, "PATH", path)
    return path


def test_a_row_is_written_beside_the_others(own):
    tune.write("Some GPU", "head_dim 64, long", ROW, [own])
    tune.write("Some GPU", "head_dim 64, short", ROW, [own])
    table = json.loads(own.read_text())
    assert list(table["measured"]["Some GPU"]) == ["head_dim 64, long", "head_dim 64, short"]
    assert table["defaults"] == dispatch.table()["defaults"]
    assert list(own.parent.iterdir()) == [own]


def test_a_table_that_cannot_be_written_whole_is_left_as_it_was(own, monkeypatch):
    before = own.read_bytes()
    monkeypatch.setattr(tune.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        tune.write("Some GPU", "head_dim 64, long", ROW, [own])
    assert own.read_bytes() == before
    assert list(own.parent.iterdir()) == [own]


CONFIGS = list(tune.candidates((9, 0)))
WRONG, BROKEN = CONFIGS[3], CONFIGS[11]


class Bench:
    """Invented times in the place of a GPU: the quickest option is wrong, the next does not run. `ran` says what was
    tried; `stops` is the option at which the run is interrupted."""

    def __init__(self, monkeypatch):
        self.ran, self.stops = [], None
        self.spent = {str(WRONG): 1.0, str(BROKEN): 2.0, str(CONFIGS[5]): 4.0, "cudnn": 3.5}
        self.spent[str(replace(CONFIGS[5], polynomial=2))] = self.spent["ours"] = 3.0
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
        randn = torch.randn
        monkeypatch.setattr(torch, "randn", lambda *shape, device=None, **more: randn(*shape, **more))
        monkeypatch.setattr(tune, "by_kernel", self.by_kernel)
        monkeypatch.setattr(tune, "by_torch", lambda q, k, v, scale, backend: reference(q, k, v, scale))
        monkeypatch.setattr(tune, "time", lambda runs, rounds: {name: self.spent.get(name, 10.0) for name in runs})

    def by_kernel(self, q, k, v, scale, config):
        self.ran.append(config)
        if config == self.stops:
            raise KeyboardInterrupt
        if config == BROKEN:
            raise OutOfResources(300000, 232448, "shared memory")
        return reference(q, k, v, scale * (2 if config == WRONG else 1)).bfloat16()

    def run(self, *arguments):
        self.ran.clear()
        shape = ["--batch", "1", "--tokens", "33", "--heads", "2", "--head-dim", "16"]
        return tune.main([*shape, *map(str, arguments)])


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


def row_of(path):
    return json.loads(path.read_text())["measured"]["Some GPU"]["head_dim 16, short"]


def test_only_what_is_right_can_win(bench, own, capsys):
    """The quickest right option is chosen, with a polynomial, which only the best are tried with."""
    assert bench.run() == 0
    row = row_of(own)
    assert row["config"] == asdict(replace(CONFIGS[5], polynomial=2))
    assert row["milliseconds"] == {"flash": 10.0, "cudnn": 3.5, "efficient": 10.0, "ours": 3.0}
    assert (row["fastest"], row["complete"], row["shape"]) == ("ours", True, [1, 33, 3, 2, 16])
    assert row["tried"][str(WRONG)] is row["tried"][str(BROKEN)] is None
    assert len(row["tried"]) == len(CONFIGS) + 4 * 3
    assert "does not run: out of resource" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_it_measured_and_goes_on(bench, own):
    bench.stops = CONFIGS[20]
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    row = row_of(own)
    assert list(row["tried"]) == [str(config) for config in CONFIGS[:16]]
    assert (row["complete"], row["fastest"], row["config"]) == (False, "cudnn", asdict(CONFIGS[5]))
    assert row["milliseconds"]["ours"] == 4.0
    bench.stops = None
    assert bench.run() == 0
    assert bench.ran[0] == CONFIGS[16]
    assert row_of(own)["config"] == asdict(replace(CONFIGS[5], polynomial=2))
    assert bench.run() == 0  # what was finished is measured again
    assert bench.ran[0] == CONFIGS[0]


def test_what_another_version_measured_is_measured_again(bench, own, monkeypatch):
    bench.stops = CONFIGS[20]
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    bench.stops = None
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert bench.run() == 0
    assert bench.ran[0] == CONFIGS[0]


def test_before_any_option_ran_there_is_a_row(bench, own):
    """From the others: an interrupt while the first options compile."""
    bench.stops = CONFIGS[0]
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    row = row_of(own)
    assert (row["fastest"], row["tried"]) == ("cudnn", {})
    assert row["config"] == asdict(dispatch.default_config((9, 0), BF16))


def test_where_no_option_of_ours_is_right_the_others_are_left(bench, own, monkeypatch):
    monkeypatch.setattr(tune, "by_kernel", lambda q, k, v, scale, config: bench.by_kernel(q, k, v, scale, WRONG))
    assert bench.run() == 0
    assert row_of(own)["milliseconds"] == {"flash": 10.0, "cudnn": 3.5, "efficient": 10.0}
    assert set(row_of(own)["tried"].values()) == {None}


def test_the_table_is_copied_out_after_each_group(bench, own, tmp_path):
    bench.stops = CONFIGS[20]
    with pytest.raises(KeyboardInterrupt):
        bench.run("--output", tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_text() == own.read_text()
    assert list(row_of(tmp_path / "copy.json")["tried"]) == [str(config) for config in CONFIGS[:16]]


def test_a_package_that_cannot_be_written(bench, own, tmp_path, monkeypatch, capsys):
    before, able = own.read_bytes(), tune.os.access
    monkeypatch.setattr(tune.os, "access", lambda path, mode: path != own.parent and able(path, mode))
    assert bench.run() == 2
    assert capsys.readouterr().err == f"{own} cannot be written; name another file with --output.\n"
    assert bench.run("--output", tmp_path / "copy.json") == 0
    assert own.read_bytes() == before
    assert row_of(tmp_path / "copy.json")["complete"]
    assert json.loads((tmp_path / "copy.json").read_text())["defaults"] == json.loads(before)["defaults"]


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(bench, own, tmp_path, capsys):
    assert bench.run("--output", tmp_path / "none" / "copy.json") == 2
    assert "name a file in a folder that is there" in capsys.readouterr().err
    assert bench.run("--output", tmp_path) == 2
    assert not bench.ran


def test_no_two_options_have_one_name():
    for capability in ((8, 0), (9, 0), (10, 0), (12, 0)):
        configs = [replace(c, polynomial=share) for c in tune.candidates(capability) for share in (0, 2, 4, 8)]
        configs += tune.producers(capability, 64)
        assert len({str(config) for config in configs}) == len(configs)
    named = dispatch.Config(64, 128, 4, 2, descriptors=True, polynomial=2, ahead=True)
    assert str(named) == "64x128, 4 warps, 2 stages, polynomial 2, descriptors, ahead"


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


@pytest.mark.parametrize(
    "gpu", [("NVIDIA H200", (9, 0)), ("NVIDIA GeForce RTX 4090", (8, 9)), ("NVIDIA B200", (10, 0))]
)
def test_the_length_of_consisid_1_5_has_the_choice_of_the_previews(gpu):
    """9,676 tokens, for which there is no row of its own; both are long."""
    tokens = [
        variant.transformer.max_text_seq_length + VideoShape.of(variant, None, None, None).video_tokens
        for variant in (PREVIEW, V1_5)
    ]
    assert tokens == [17776, 9676]
    preview, other = (dispatch.look_up(*gpu, torch.bfloat16, 64, count) for count in tokens)
    assert preview == other
