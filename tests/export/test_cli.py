"""consisid-build as it is typed: what it prints, and what it says without building."""

import re

import pytest

from consisid.engine.manifest import Manifest
from consisid.export.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli") / "engine"


@pytest.fixture(scope="module", autouse=True)
def printed(folder):
    """What the build printed."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main(["tiny", "--output", str(folder), "--backend", "eager", "--device", "cpu"]) == 0
    return out.getvalue(), err.getvalue()


def test_each_graph_is_a_line_with_its_time(folder, printed):
    """And the place in the build with the time that is left."""
    graphs = list(Manifest.read(folder).graphs)
    begin = rf"consisid-build: building: graph (\d+) of {len(graphs)}, \d+ s"
    lines = [
        re.fullmatch(rf"{begin}(, about \d+ s left)?; (\w+) took \d+\.\d\d s with eager", line)
        for line in printed[1].splitlines()
    ]
    assert [(int(line[1]), line[3]) for line in lines] == list(enumerate(graphs, 1))


def test_list_says_what_a_folder_is(folder, printed, capsys):
    assert main(["--list", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said == printed[0]
    manifest = Manifest.read(folder)
    assert said.startswith(f"{folder}: tiny, 144x96, 17 frames, float32, for cpu")
    assert f"{len(manifest.graphs)} by eager" in said
    assert all(re.search(rf"^  {name} +eager +built in", said, re.MULTILINE) for name in manifest.graphs)
    assert main(["--list", str(folder / "graphs")]) == 2
    assert "no engine folder" in capsys.readouterr().err


def test_a_dry_run_lists_what_would_be_built(tmp_path, capsys):
    assert main(["tiny", "--dry-run", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "block " in said
    assert "trunk_0" not in said
    target = ["--backend", "tensorrt-rtx", "--target", "sm_89,sm_120", "--layers-per-shard", "2"]
    assert main(["tiny", "--dry-run", *target, "--output", str(tmp_path / "engine")]) == 0
    said = capsys.readouterr().out
    assert "bfloat16, backend tensorrt-rtx, for sm_89, sm_120" in said
    assert re.findall(r"^  (trunk_\d+)", said, re.MULTILINE) == ["trunk_0", "trunk_1"]  # four blocks, two in each
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--target", "sm_89", "--backend", "eager"], "eager has no --target sm_89"),
        (["--target", "sm_89", "--backend", "tensorrt-rtx", "--refit"], "takes no LoRA"),
        (["--target", "sm_89", "--backend", "tensorrt-rtx", "--memory", "auto"], "with --target give a number"),
    ],
)
def test_a_dry_run_refuses_what_a_build_would(arguments, reason, capsys):
    assert main(["tiny", "--dry-run", *arguments]) == 2
    assert reason in capsys.readouterr().err
