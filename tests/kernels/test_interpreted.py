"""Runs interpreted/check_*.py, each in a fork of one process that has imported PyTorch and Triton.

Triton decides between compiler and interpreter when a kernel is defined, by TRITON_INTERPRET; so the variable has to
be set before that process starts, and the other tests have to run without it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("triton")
CHECKS = sorted((Path(__file__).parent / "interpreted").glob("check_*.py"))

# A line with a file of checks and one for what they print; the answer is pytest's status.
SERVER = """
import gc, os, sys
import pytest
import torch._dynamo
import triton
import consisid.kernels.ops
gc.freeze()
for line in sys.stdin:
    checks, output = line.rstrip("\\n").split("\\t")
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        with open(output, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = pytest.main(["-x", "-p", "no:cacheprovider", checks])
        sys.stdout.flush()
        os._exit(status)
"""


@pytest.fixture(scope="module")
def interpreter() -> Iterator[subprocess.Popen]:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("path", CHECKS, ids=[path.stem for path in CHECKS])
def test_interpreted(path: Path, interpreter: subprocess.Popen, tmp_path: Path) -> None:
    output = tmp_path / "output"
    interpreter.stdin.write(f"{path}\t{output}\n")
    interpreter.stdin.flush()
    assert interpreter.stdout.readline() == "0\n", output.read_text()[-8000:]
