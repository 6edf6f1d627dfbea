"""A transcript of the manual's first hour: every command of docs/quickstart.md runs as it is printed and in its order,
on TINY; those that need a checkpoint or a GPU, and those of the other pages, are read by their parsers.
README's is in test_readme.py."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import av
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)( title=\"[^\"]*\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICKSTART = [(kind, not title, code) for kind, title, code in FENCE.findall((ROOT / "docs/quickstart.md").read_text())]


def printed() -> list[tuple[str, str]]:
    """Page and line of every command of ours in a block of the manual, continued lines joined."""
    found = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        for kind, _, code in FENCE.findall(page.read_text()):
            lines = re.findall(r'^consisid[\w-]* (?:[^\n"]|"[^"]*")*', code.replace("\\\n", " "), re.MULTILINE)
            found += [(page.stem, line) for line in lines if kind == "bash"]
    return found


def test_what_is_printed_runs(shell):
    runs = [(kind, code) for kind, runs, code in QUICKSTART if runs]
    assert [kind for kind, _ in runs] == ["bash", "bash", "bash", "python"]
    for kind, code in runs:
        command = ["bash", "-euc", code] if kind == "bash" else [sys.executable, "-c", code]
        result = subprocess.run(command, timeout=300, **shell)
        assert result.returncode == 0, result.stderr
    for name in ("first", "second", "third", "fourth"):
        with av.open(str(shell["cwd"] / f"{name}.mp4")) as file:
            assert sum(1 for _ in file.decode(video=0)) == 17
    assert {"face.png", "me.safetensors"} <= set(os.listdir(shell["cwd"]))


@pytest.mark.parametrize(("page", "line"), printed(), ids=lambda text: text[:40].replace("/", "-"))
def test_a_command_that_is_printed_is_understood(page, line, pages):
    name, *arguments = shlex.split(line)
    parser = pages.parsers()[name]
    if parser is None or not hasattr(parser, "parse_args"):
        pytest.skip(f"{name} has no parser of its own")
    parser.parse_args(arguments)
