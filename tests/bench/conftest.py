"""A model smaller than TINY: reports and phases are about what is measured and said, not about the video."""

from dataclasses import replace
from pathlib import Path

import pytest

from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.variants import TINY, Variant
from consisid.export import build

MINI = replace(
    TINY,
    name="custom",
    height=32,
    width=48,
    transformer=replace(TINY.transformer, sample_height=4, sample_width=6, num_layers=4),
    vae=replace(TINY.vae, block_out_channels=(8, 8, 16, 16), layers_per_block=1, sample_height=32, sample_width=48),
)


@pytest.fixture(scope="session")
def mini() -> Variant:
    return MINI


@pytest.fixture(scope="session")
def mini_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = write_checkpoint(MINI, tmp_path_factory.mktemp("mini") / "checkpoint")
    folder = checkpoint.parent / "engine"
    build(checkpoint, folder, dtype="bfloat16")
    return folder
