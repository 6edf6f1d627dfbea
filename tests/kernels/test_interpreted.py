"""Runs interpreted/check_*.py, one process each.

Triton decides between compiler and interpreter when a kernel is defined, by TRITON_INTERPRET; so the variable has to
be set before the process that checks a kernel starts, and the other tests have to run without it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("triton")
CHECKS = sorted((Path(__file__).parent / "interpreted").glob("check_*.py"))


@pytest.mark.parametrize("path", CHECKS, ids=[path.stem for path in CHECKS])
def test_interpreted(path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(path)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
