"""Tests on a CUDA device that computes nothing: `make cuda` runs them; elsewhere they are skipped by name."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hollow.calls import Device, Kind, Record, present
from support.people import random_identity

from consisid.engine import ConsisID, Identity
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.variants import TINY
from consisid.export import build

PROMPT = "A person walks."
OPTIONS: dict[str, Any] = {"seed": 5, "num_inference_steps": 3, "num_frames": 9, "output_type": "latent"}
FILL = 1  # what the device reads back: flags are true, and numbers of any dtype are small and finite
# TINY with weights that are large against what comes and goes, so that budgets make them stream.
WIDE = replace(
    TINY,
    name="wide",
    transformer=replace(TINY.transformer, num_attention_heads=24, num_layers=8, LFE_output_dim=1024),
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "faulty: the test does what a GPU refuses")
    if reason_to_skip() is None and config.option.tbstyle == "auto":
        config.option.tbstyle = (
            "short"  # the long one shows arguments, and what a tensor here holds is no number to print
        )


def reason_to_skip() -> str | None:
    """Why the tests cannot run in this process, None where they can."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is a build without CUDA; run `make cuda`"
    return None if present() else "the hollow device is not loaded; run `make cuda`"


@pytest.fixture(scope="session")
def loaded() -> Device:
    """The device, for the whole session."""
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    # cuDNN's attention is planned by code of cuDNN itself, which finds no GPU that it knows.
    torch.backends.cuda.enable_cudnn_sdp(False)
    device = Device()
    device.set_fill(FILL)
    return device


@pytest.fixture(autouse=True)
def hollow(loaded: Device, request: pytest.FixtureRequest) -> Iterator[Device]:
    """The device, on which no test may do what a GPU refuses, unless it says so: `@pytest.mark.faulty`."""
    gc.collect()  # engines of earlier tests, which refer to themselves: what they give back is no memory of this one
    loaded.set_fill(FILL)
    loaded.reset()
    before = fractions()
    yield loaded
    loaded.refuse_pinning(0)
    loaded.forget_error()
    loaded.take(0)
    loaded.refuse_allocations(-1)
    torch.cuda.set_device(0)
    assert fractions() == before, "a limit of the process was not put back"
    if request.node.get_closest_marker("faulty") is None:
        assert loaded.count(Kind.FAULT) == 0, "a GPU would have refused a call; record it to see which"


def fractions() -> list[float]:
    """What of each device this process may reserve."""
    return [torch.cuda.get_per_process_memory_fraction(index) for index in range(torch.cuda.device_count())]


def build_once(factory: pytest.TempPathFactory, checkpoint: Any, **options: Any) -> Path:
    folder = factory.mktemp("engines") / "engine"
    build(checkpoint, folder, device="cuda", **options)
    return folder


@pytest.fixture(scope="session")
def checkpoint(loaded: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint("tiny", folder)
    return folder


@pytest.fixture(scope="session", params=["bfloat16", "float32"])
def any_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """TINY, eager, in each dtype."""
    return build_once(tmp_path_factory, checkpoint, backend="eager", dtype=request.param)


@pytest.fixture(scope="session")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TINY, eager, in bfloat16."""
    return build_once(tmp_path_factory, checkpoint, backend="eager")


@pytest.fixture(scope="session")
def compiled_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TINY compiled by AOTInductor for sm_90."""
    return build_once(tmp_path_factory, checkpoint, backend="inductor")


@pytest.fixture(scope="session")
def wide_folder(loaded: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_once(tmp_path_factory, WIDE, backend="eager", random_weights=True)


@pytest.fixture(scope="session")
def person() -> Identity:
    return random_identity(TINY)


@pytest.fixture
def engine(folder: Path) -> ConsisID:
    return ConsisID.open(folder, device="cuda")


@dataclass
class Steps:
    """A generate() whose steps are told apart: `calls[i]` has what was called from the end of step i - 1 to that of
    step i; `whole` is all of it."""

    whole: Record
    calls: list[Record]
    made: Any


def record_steps(device: Device, engine: ConsisID, person: Identity, **options: Any) -> Steps:
    """Run generate() and record it."""
    marks = [0]

    def mark(*_: Any) -> dict[str, Any]:
        marks.append(device.position)
        return {}

    with device.recorded() as record:
        made = engine.generate(person, PROMPT, callback_on_step_end=mark, **{**OPTIONS, **options})
    return Steps(record, [Record(record.calls[a:b]) for a, b in pairwise(marks)], made)
