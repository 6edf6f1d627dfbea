"""Shared by all tests: one TINY checkpoint and one eager engine per session, and a reference pipeline beside it."""

import gc
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from support.engines import SHALLOW, once
from support.people import random_face
from support.reference import reference_pipeline

from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.export import build

with suppress(ImportError):  # the venv of `make cuda` has no hypothesis
    from hypothesis import settings

    settings.register_profile("nightly", max_examples=1000)  # ten times as many, also where a test says how many


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By the mark `order`, which stands in the files that are long or share what is long to make."""

    def rank(item: pytest.Item) -> int:
        mark = item.get_closest_marker("order")
        return mark.args[0] if mark else 0

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """What all the imports have made stays; looked through for garbage again and again, it would take minutes."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    return once(tmp_path_factory, worker_id, "tiny-checkpoint", lambda path: write_checkpoint("tiny", path))


@pytest.fixture(scope="session")
def tiny_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    return once(tmp_path_factory, worker_id, "tiny", lambda path: build(tiny_checkpoint, path, backend="eager"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> ConsisID:
    return ConsisID.open(tiny_folder)


@pytest.fixture(scope="session")
def shallow_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """SHALLOW, for tests that decode and are not about decoding: a frame takes a quarter of the time."""

    def make(path: Path) -> None:
        build(write_checkpoint(SHALLOW, path.with_name("shallow-checkpoint")), path, backend="eager")

    return once(tmp_path_factory, worker_id, "shallow", make)


@pytest.fixture(scope="session")
def shallow_checkpoint(shallow_folder: Path) -> Path:
    return shallow_folder.with_name("shallow-checkpoint")


@pytest.fixture(scope="session")
def shallow(shallow_folder: Path) -> ConsisID:
    return ConsisID.open(shallow_folder)


@pytest.fixture(scope="session")
def tiny_reference(tiny_checkpoint: Path):
    return reference_pipeline(tiny_checkpoint)


@pytest.fixture(scope="session")
def shallow_reference(shallow_checkpoint: Path):
    return reference_pipeline(shallow_checkpoint)


@pytest.fixture
def face() -> Image.Image:
    return random_face()
