"""A checkpoint whose files can be changed one by one."""

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint; its files are links until a case replaces them."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint", copy_function=os.link)
