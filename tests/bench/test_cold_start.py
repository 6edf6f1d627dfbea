"""What a new process pays before its first step."""

from consisid.bench.tools import cold_start


def test_a_new_process_is_taken_apart(tiny_folder, tmp_path):
    values = cold_start.measure(tiny_folder, tmp_path, runs=1)
    seconds = {name: times[0] for name, times in values["seconds"].items()}
    whole = seconds.pop("whole process, Python's own start and end included")
    assert set(seconds) >= {"import torch", "import consisid.engine", "open"}
    assert 0 < sum(seconds.values()) < whole
    assert values["programs_started"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start.json", "start.md"]
    assert "| open | " in (tmp_path / "start.md").read_text()
