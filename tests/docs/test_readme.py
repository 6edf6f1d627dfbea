"""The first hour with README alone, as a transcript: every command and every script of it runs as it is printed and in
its order, in one folder, with TINY in the place of the checkpoint that it names. The manual's is test_quickstart.py."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from consisid.engine.variants import TINY

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
INDENTED = re.compile(r"(?:^    .*\n|^\n(?=    ))+", re.MULTILINE)
BLOCKS = [block.replace("\n    ", "\n").strip() for block in INDENTED.findall(README)]
COMMANDS = [
    line.partition("     #")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"(consisid|make|pip)[\w-]* ", line)
]
OURS = [line for line in COMMANDS if line.startswith("consisid")]


def test_it_has_the_commands_of_a_first_hour():
    assert {line.split()[0] for line in OURS} >= {"consisid-build", "consisid-generate", "consisid-bench"}
    targets = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", OURS, ids=lambda line: line.split(" ")[0])
def test_a_command_is_understood(line, pages):
    name, *arguments = shlex.split(line.replace("...", ""))
    from_file = ["--image", "me.jpg", "--prompt", ""] if "--like" in arguments else []
    pages.parsers()[name].parse_args(arguments + from_file)


@pytest.fixture
def hub(tmp_path, tiny_checkpoint):
    """A cache of the hub in which the checkpoint that README names is TINY's."""
    root = tmp_path / "hub" / "models--BestWishYsh--ConsisID-preview"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_checkpoint, root / "snapshots" / ("0" * 40))
    return {"HF_HUB_CACHE": str(root.parent), "HF_HUB_OFFLINE": "1"}


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


@pytest.mark.full
def test_what_is_printed_runs(shell, hub):
    """A minute of CPU time: the report measures diffusers beside the engine."""
    shell["env"] |= hub | {"OMP_NUM_THREADS": "1"}
    home = shell["cwd"]
    width = TINY.transformer.inner_dim
    lora = {f"transformer.transformer_blocks.0.attn1.to_v.lora_{k}.weight": torch.ones(shape) / width
            for k, shape in (("A", (2, width)), ("B", (width, 2)))}  # fmt: skip
    for name in ("snow", "film"):
        save_file(lora, home / f"{name}.safetensors")
    for line in OURS:
        done = subprocess.run(["bash", "-euc", line], timeout=600, **shell)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    first, again = (frames_of(home / f"{name}.mp4") for name in ("out", "again"))
    assert first.shape == (17, 96, 144, 3)
    assert np.array_equal(first, again)
    assert {"report.json", "report.md", "report.html"} <= set(os.listdir(home / "report"))
    scripts = [block for block in BLOCKS if "ConsisID.open" in block or "engine.load_lora" in block]
    lines = "\n".join(scripts).replace("\\\n", " ").splitlines()
    code = "\n".join(line for line in lines if not line.startswith("consisid"))
    assert "load_lora_weights" in code
    done = subprocess.run([sys.executable, "-c", code], timeout=600, **shell)
    assert done.returncode == 0, done.stderr


def test_the_figures_of_the_h200_are_those_of_its_report():
    report = (ROOT / "bench" / "reports" / "h200.md").read_text()
    (row,) = [line for line in README.splitlines() if line.startswith("| NVIDIA H200")]
    figures = re.findall(r"\| (\d+\.\d+) (?=\|)", row)
    assert len(figures) == 3
    assert [figure for figure in figures if f" {figure} " not in report] == []
