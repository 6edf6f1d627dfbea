"""What a new process pays before its first step."""

from consisid.bench.tools import cold_start as start


def test_a_new_process_is_taken_apart(tiny_folder, tmp_path):
    values = start.measure(tiny_folder, tmp_path, runs=1)
    seconds = {name: times[0] for name, times in values["seconds"].items()}
    whole = seconds.pop("whole process, Python's own start and end included")
    assert set(seconds) >= {"import torch", "import consisid.engine", "open"}
    assert 0 < sum(seconds.values()) < whole
    assert values["programs_started"] == 0
    assert any(name.startswith("torch") for name in list(values["imports"])[:3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start.json", "start.md"]
    assert "| open | " in (tmp_path / "start.md").read_text()


def test_own_times_are_summed_by_package():
    said = "import time: self [us] | cumulative | imported package\n"
    said += "import time:       500 |        500 |     torch._C\n"
    said += "import time:      1500 |       2000 |   torch.nn.functional\n"
    said += "import time:      2500 |       2500 | torch.nn\n"
    said += "import time:      1000 |       1000 | numpy.core\n"
    assert start.import_costs(said) == {"torch.nn": 0.004, "numpy": 0.001, "torch._C": 0.0005}
