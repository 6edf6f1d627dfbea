"""The first hour with README alone: every command and every script of it runs as it is printed, with a small model in
the place of the checkpoint that it names."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from skimage.io import imread

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
    pages.parsers()[name].parse_args(arguments)


@pytest.fixture
def hub(tmp_path, tiny_checkpoint):
    """A cache of the hub in which the checkpoint that README names is TINY's."""
    root = tmp_path / "hub" / "models--BestWishYsh--ConsisID-preview"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_checkpoint, root / "snapshots" / ("0" * 40))
    return {"HF_HUB_CACHE": str(root.parent), "HF_HUB_OFFLINE": "1"}


@pytest.mark.full
def test_what_is_printed_runs(shell, hub):
    """A minute and more on two cores: the report measures diffusers beside the engine."""
    shell["env"] |= hub | {"OMP_NUM_THREADS": "2"}
    home = shell["cwd"]
    lora = {f"transformer.transformer_blocks.0.attn1.to_v.lora_{k}.weight": torch.ones(64, 64)[:n, :m] / 64
            for k, n, m in (("A", 2, 64), ("B", 64, 2))}  # fmt: skip
    for name in ("snow", "film"):
        save_file(lora, home / f"{name}.safetensors")
    for line in OURS:
        done = subprocess.run(["bash", "-euc", line], timeout=600, **shell)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (home / "out.mp4").stat().st_size > 1000
    assert {"report.json", "report.md", "report.html"} <= set(os.listdir(home / "report"))
    scripts = [block for block in BLOCKS if "ConsisID.open" in block or "engine.load_lora" in block]
    code = "\n".join("\n".join(block.splitlines()[next(i for i, line in enumerate(block.splitlines())
                      if not line.startswith("consisid")) :]) for block in scripts)  # fmt: skip
    assert "load_lora_weights" in code
    done = subprocess.run([sys.executable, "-c", code], timeout=600, **shell)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        ["bash", "-euc", "consisid generate engines/preview --like out.mp4 --output again.png -q"], timeout=600, **shell
    )
    assert done.returncode == 0, done.stderr
    assert imread(home / "again.png").shape == (96, 144, 3)
