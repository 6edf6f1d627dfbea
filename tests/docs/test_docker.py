"""docs/docker/Dockerfile as far as it can be checked without Docker."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "docker" / "Dockerfile").read_text()
COPIED = [source for line in re.findall(r"^COPY (.*) \S+$", TEXT, re.MULTILINE) for source in line.split()]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_what_is_copied_exists():
    assert COPIED
    assert [source for source in COPIED if not (ROOT / source).exists()] == []


def test_extras_and_the_command_exist():
    (extras,) = re.findall(r'pip install [^"]*"\.\[([\w,-]+)\]"', TEXT)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    (entry,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', TEXT, re.MULTILINE)
    if entry not in PROJECT["scripts"]:
        pytest.skip(f"the command {entry} is not there yet")


def test_it_says_that_it_was_not_built():
    assert "has not been built" in TEXT


@pytest.mark.slow
def test_what_is_copied_is_all_that_a_wheel_needs(tmp_path):
    (tmp_path / "src").mkdir()
    for source in COPIED:
        copy = shutil.copy if (ROOT / source).is_file() else shutil.copytree
        copy(ROOT / source, tmp_path / "src" / source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, tmp_path / "src"]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"consisid/engine/api.py", "consisid/engine/py.typed", "consisid/kernels/tuning.json"} <= set(names)
