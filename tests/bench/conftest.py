"""A model smaller than TINY: reports and phases are about what is measured and said, not about the video."""

import json
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engines import once

from consisid.bench.cli import main
from consisid.bench.core.weights import build_random
from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.variants import TINY, Variant
from consisid.export import build

MINI = replace(
    TINY,
    name="custom",
    height=32,
    width=48,
    num_frames=9,
    transformer=replace(TINY.transformer, sample_height=4, sample_width=6, sample_frames=9),
    vae=replace(TINY.vae, block_out_channels=(8, 8, 16, 16), layers_per_block=1, sample_height=32, sample_width=48),
)


@pytest.fixture(scope="session")
def mini() -> Variant:
    return MINI


@pytest.fixture(scope="session")
def mini_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    def make(path: Path) -> None:
        build(write_checkpoint(MINI, path.with_name("mini-checkpoint")), path, backend="eager")

    return once(tmp_path_factory, worker_id, "mini", make)


@pytest.fixture(scope="session")
def random_mini(mini: Variant, tmp_path_factory: pytest.TempPathFactory) -> ConsisID:
    """An engine in bfloat16 from a folder with random weights."""
    folder = tmp_path_factory.mktemp("random") / "engine"
    return ConsisID.open(build_random(folder, mini, torch.device("cpu"), torch.bfloat16))


@pytest.fixture(scope="session")
def written(mini_folder: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A report made by the command; its folder. All tests that read a report read this one."""

    def make(folder: Path) -> None:
        with folder.with_name("said").open("w") as said, redirect_stderr(said):
            assert main([str(mini_folder), "--output", str(folder), "--steps", "2", "--runs", "2"]) == 0

    return once(tmp_path_factory, worker_id, "report", make)


@pytest.fixture(scope="session")
def values(written: Path) -> dict[str, Any]:
    return json.loads((written / "report.json").read_text())
