"""Any file of a checkpoint, of an engine folder or of ours, changed in any way: an error of ours or a result, never
another exception, and nothing is written."""

import copy
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.files import replace
from support.people import random_identity

from consisid.engine import ConsisID, ConsisIDError, Identity
from consisid.engine.checkpoint.reading import Checkpoint
from consisid.engine.manifest import BuildSpec, digest
from consisid.engine.run.resume import Snapshot, states
from consisid.engine.sampling import load_scheduler
from consisid.engine.util.parsing import Unreadable
from consisid.engine.variants import TINY
from consisid.export import build
from consisid.export.check import check_tensors, check_tokenizer

pytestmark = pytest.mark.slow

LONGEST = 400  # characters of a message, without the paths in it
VALUES = [
    None, True, False, -1, 0, 1, 3, 10**6, 10**30, 1e308, 0.5, float("nan"), float("inf"), "", "x", "x" * 1000, "../x",
    "\0", "\ud800", [], {}, [[]], [1] * 1000, {"a": {"b": []}},
]  # fmt: skip
BYTES = [b"\0", b"\xff", b"\xff" * 8, b"[" * 5000, b'{"', b"PK\3\4", b"\x80\2", b"version https://git-lfs"]


def change_bytes(data: bytes, pick: random.Random) -> bytes:
    """Flip bits, cut, overwrite, insert, repeat; mostly near the beginning, where formats have their headers."""
    place = pick.choice([0, pick.randrange(64), pick.randrange(2000), pick.randrange(len(data) + 1)])
    piece, place = pick.choice(BYTES), min(place, len(data))
    kind = pick.randrange(5)
    if kind == 0 and data:
        changed = bytearray(data)
        for _ in range(pick.choice([1, 1, 8])):
            changed[min(place + pick.randrange(16), len(data) - 1)] ^= 1 << pick.randrange(8)
        return bytes(changed)
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + piece + data[place + len(piece) :]
    if kind == 3:
        return data[:place] + piece + data[place:]
    return piece * pick.choice([1, 100])


def change_value(values: object, pick: random.Random) -> object:
    """Replace, remove or add one value somewhere in a JSON value."""
    values = copy.deepcopy(values)
    place, parent, key = values, None, None
    while isinstance(place, dict | list) and place and (parent is None or pick.random() < 0.8):
        parent, key = place, pick.choice(list(place)) if isinstance(place, dict) else pick.randrange(len(place))
        place = parent[key]
    if parent is None:
        return pick.choice(VALUES)
    if pick.random() < 0.2:
        del parent[key]
    else:
        parent[key] = pick.choice(VALUES)
    return values


def change_json(data: bytes, pick: random.Random) -> bytes:
    try:
        return json.dumps(change_value(json.loads(data), pick)).encode()
    except ValueError:  # no JSON, or half of a surrogate pair
        return change_bytes(data, pick)


def change_manifest(data: bytes, pick: random.Random) -> bytes:
    """As change_json, and signed as a build would have: the hash of a manifest is no secret."""
    values = json.loads(data)
    values.pop("digest")
    changed = change_value(values, pick)
    if isinstance(changed, dict):
        with suppress(Unreadable, KeyError, TypeError, ValueError):  # what it says then is part of the case
            changed["key"] = BuildSpec.read(changed["spec"]).key
        changed["digest"] = digest(changed)
    return json.dumps(changed).encode()


def read_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    check_tokenizer(checkpoint)
    load_scheduler(folder / "scheduler")
    check_tensors(checkpoint)


def open_engine(folder: Path) -> None:
    engine = ConsisID.open(folder)
    assert engine.text_encoder.tokenizer(["A person."]).shape == (1, 32)
    assert engine.scheduler.timesteps is not None


def load_run(file: Path) -> None:
    Snapshot.load(file, torch.device("cpu"), states([torch.Generator()]))


@pytest.fixture(scope="module")
def originals(tiny_checkpoint, tmp_path_factory) -> Path:
    """A bundled engine, the identity of a person and the file of a run."""
    folder = tmp_path_factory.mktemp("originals")
    build(tiny_checkpoint, folder / "engine", backend="eager", bundle=True)
    random_identity(TINY).save(folder / "me.safetensors")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    options = {"seed": 1, "num_inference_steps": 3, "checkpoint_every": 1, "output_type": "latent"}
    count = iter(range(9))
    with pytest.raises(KeyboardInterrupt):
        ConsisID.open(folder / "engine").generate(
            random_identity(TINY), "A man.", checkpoint=folder / "run.safetensors", **options,
            callback_on_step_end=lambda engine, step, time, tensors: tensors if next(count) < 2 else stop(),
        )  # fmt: skip
    return folder


CASES: dict[str, tuple[str, Callable[[bytes, random.Random], bytes], Callable[[Path], object]]] = {
    "manifest": ("engine/manifest.json", change_json, open_engine),
    "manifest's bytes": ("engine/manifest.json", change_bytes, open_engine),
    "manifest, signed": ("engine/manifest.json", change_manifest, open_engine),
    "engine's scheduler": ("engine/checkpoint/scheduler/scheduler_config.json", change_json, open_engine),
    "engine's weights": ("engine/checkpoint/vae/diffusion_pytorch_model.safetensors", change_bytes, open_engine),
    "transformer": ("engine/checkpoint/transformer/config.json", change_json, read_checkpoint),
    "vae": ("engine/checkpoint/vae/config.json", change_json, read_checkpoint),
    "text encoder": ("engine/checkpoint/text_encoder/config.json", change_json, read_checkpoint),
    "scheduler": ("engine/checkpoint/scheduler/scheduler_config.json", change_json, read_checkpoint),
    "scheduler's bytes": ("engine/checkpoint/scheduler/scheduler_config.json", change_bytes, read_checkpoint),
    "tokenizer": ("engine/checkpoint/tokenizer/spiece.model", change_bytes, read_checkpoint),
    "weights": ("engine/checkpoint/text_encoder/model.safetensors", change_bytes, read_checkpoint),
    "EVA": ("engine/checkpoint/face_encoder/EVA02_CLIP_L_336_psz14_s6B.pt", change_bytes, read_checkpoint),
    "RetinaFace": ("engine/checkpoint/face_encoder/detection_Resnet50_Final.pth", change_bytes, read_checkpoint),
    "identity": ("me.safetensors", change_bytes, Identity.load),
    "run": ("run.safetensors", change_bytes, load_run),
}  # fmt: skip


@given(name=st.sampled_from(sorted(CASES)), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=examples(150), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_a_changed_file_is_refused_or_read(originals, tmp_path_factory, name, seed):
    path, change, read = CASES[name]
    case = tmp_path_factory.mktemp("case")
    folder = shutil.copytree(originals, case / "copy", copy_function=os.link)
    replace(folder / path, change((folder / path).read_bytes(), random.Random(seed)))
    before = sorted(folder.rglob("*"))
    root = folder / ("engine" if read is open_engine else "engine/checkpoint" if read is read_checkpoint else path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(root)
        except ConsisIDError as error:
            message = str(error).replace(str(folder), "")
            assert len(message) <= LONGEST, message
            assert message.isprintable()
    assert sorted(folder.rglob("*")) == before
    shutil.rmtree(case)
