"""A build that is killed leaves nothing that opens, and the next one goes on where it was."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from support.forked import run_forked

from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.checkpoint.reading import Checkpoint
from consisid.engine.errors import EngineError, InputError
from consisid.engine.manifest import Manifest, describe_weights
from consisid.export import build
from consisid.export import compile as choose
from consisid.export import staging as module
from consisid.export.staging import staging

pytestmark = pytest.mark.slow

# A compiler that is quick and writes in two halves, so that a kill can fall between them.
COMPILE = """
def compile(name, graph, stem, device, dtype):
    file = stem.with_suffix(".bin")
    file.write_bytes(b"first half of " + graph.name.encode())
    at("half of " + graph.name)
    file.write_bytes(b"first half of " + graph.name.encode() + b" and the rest")
    return file
"""

CHILD = (
    """
import os, signal, sys
from consisid.engine import manifest
from consisid.export import build, check, checkpoint_source as source, compile as choose, staging
where = sys.argv[1]
def at(place):
    if place == where:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    + COMPILE
    + """
choose._compile = compile
check.check_graphs = lambda checkpoint: None
finish, write, copy = staging.Staging.finish, manifest.Manifest.write, source.shutil.copytree
source.shutil.copytree = lambda *a, **k: (copy(*a, **k), at("copied"))
staging.Staging.finish = lambda self, name, e: (at("before " + name), finish(self, name, e), at("after " + name))
manifest.Manifest.write = lambda self, folder: (at("before manifest"), write(self, folder), at("before rename"))
build(sys.argv[3], sys.argv[2], backend="inductor", bundle=True)
"""
)

# Where a build is killed, and how many graphs it has finished by then (None: all of them).
PLACES = {
    "copied": 0,
    "half of text_embed": 0,
    "before text_layer": 1,
    "after text_layer": 2,
    "half of decode_next": 14,
    "before manifest": None,
    "before rename": None,
}


@pytest.fixture(autouse=True)
def unchecked(monkeypatch) -> None:
    """These builds do not run every network without data first: it takes longer than the rest and writes nothing."""
    monkeypatch.setattr("consisid.export.check.check_graphs", lambda checkpoint: None)


def quick(monkeypatch) -> list[str]:
    """The quick compiler, here; the names of what it compiles."""
    compiled, scope = list[str](), {"at": lambda place: None}
    exec(COMPILE, scope)

    def counted(name, graph, *rest):
        compiled.append(graph.name)
        return scope["compile"](name, graph, *rest)

    monkeypatch.setattr(choose, "_compile", counted)
    return compiled


@pytest.mark.parametrize("place", PLACES)
def test_killed_and_resumed(place, tmp_path, monkeypatch, tiny_checkpoint):
    output = tmp_path / "engine"
    assert run_forked(CHILD, place, output, tiny_checkpoint).returncode == -9
    assert not output.exists()
    left = tmp_path / ".engine.building"
    for folder in (left, left / "engine"):
        if (place, folder.name) != ("before rename", "engine"):  # that is whole, and only not in its place yet
            with pytest.raises(EngineError, match="finish an interrupted build"):
                ConsisID.open(folder)
    done = {f.stem: json.loads(f.read_text()) for f in (left / "entries").glob("*.json")}

    compiled = quick(monkeypatch)
    manifest = build(tiny_checkpoint, output, backend="inductor", bundle=True)
    assert manifest == Manifest.read(output)
    expected = PLACES[place]
    assert len(done) == (len(manifest.graphs) if expected is None else expected)
    assert sorted(compiled) == sorted(set(manifest.graphs) - set(done))
    for name, entry in done.items():
        assert entry["seconds"] == manifest.graphs[name].seconds
    for entry in manifest.graphs.values():
        assert (output / entry.file).read_bytes().endswith(b"and the rest")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine"]
    assert sorted(p.name for p in output.iterdir()) == ["checkpoint", "graphs", "manifest.json"]


def test_a_build_of_another_specification_starts_anew(tmp_path, monkeypatch, tiny_checkpoint):
    output = tmp_path / "engine"
    assert run_forked(CHILD, "after block", output, tiny_checkpoint).returncode == -9
    compiled = quick(monkeypatch)
    manifest = build(tiny_checkpoint, output, backend="inductor", bundle=True, num_frames=9)
    assert set(compiled) == set(manifest.graphs)


def test_a_build_on_another_machine_starts_anew(tmp_path, monkeypatch, tiny_checkpoint):
    """Killed, then PyTorch is upgraded: what the other compiled would not run here."""
    output = tmp_path / "engine"
    assert run_forked(CHILD, "before manifest", output, tiny_checkpoint).returncode == -9
    compiled = quick(monkeypatch)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    manifest = build(tiny_checkpoint, output, backend="inductor", bundle=True)
    assert manifest.provenance["torch"] == "9.9.9"
    assert set(compiled) == set(manifest.graphs)


def test_a_manifest_that_cannot_be_written_loses_nothing(tmp_path, monkeypatch, tiny_checkpoint):
    """The disk is full at the very end; the next build compiles nothing."""
    output = tmp_path / "engine"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    quick(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "write", full)
        with pytest.raises(OSError, match="No space left"):
            build(tiny_checkpoint, output, backend="inductor")
    (tmp_path / ".engine.building" / "engine" / ".1.manifest.json").write_text("{")  # of a kill while it was written
    monkeypatch.setattr(choose, "_compile", lambda *_: pytest.fail("compiled again"))
    assert build(tiny_checkpoint, output, backend="inductor") == Manifest.read(output)
    assert sorted(p.name for p in output.iterdir()) == ["graphs", "manifest.json"]


def test_what_a_killed_build_placed_is_not_taken_for_another_checkpoint(tmp_path, monkeypatch, tiny_checkpoint):
    """A killed --bundle build of one checkpoint, then a build of another to the same output."""
    output = tmp_path / "engine"
    second = write_checkpoint("tiny", tmp_path / "checkpoint", seed=1)
    assert run_forked(CHILD, "after block", output, tiny_checkpoint).returncode == -9
    assert (tmp_path / ".engine.building" / "engine" / "checkpoint").is_dir()
    quick(monkeypatch)
    manifest = build(second, output, backend="inductor", bundle=True)
    assert manifest.weights == describe_weights(Checkpoint(second))


def test_two_builders_at_once(tmp_path):
    output = tmp_path / "engine"
    with staging(output, "source"), pytest.raises(EngineError, match="Another process is building"):
        build("tiny", output, backend="eager")
    assert [p.name for p in tmp_path.iterdir()] == [".engine.building"]  # the first one's


def test_a_builder_that_was_overtaken(tmp_path, monkeypatch):
    """Somebody else finishes the folder between the first look at it and the lock."""
    output = tmp_path / "engine"
    lock = module._lock
    monkeypatch.setattr(module, "_lock", lambda held, path: (lock(held, path), output.mkdir()))
    with pytest.raises(EngineError, match="exists already"):
        build("tiny", output, backend="eager")
    assert list(output.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["engine"]


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\); name another folder"):
        build("tiny", tmp_path / "file" / "engine", backend="eager")


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "engine").mkdir()
    with pytest.raises(EngineError, match="exists already"):
        build("tiny", tmp_path / "engine", backend="eager")
    assert list((tmp_path / "engine").iterdir()) == []


def test_random_weights_store_nothing(tmp_path):
    from support.people import random_identity

    manifest = build("tiny", tmp_path / "engine", backend="eager", random_weights=True)
    assert set(manifest.weights) == {
        "scheduler/scheduler_config.json", "tokenizer/spiece.model", "tokenizer/tokenizer_config.json"
    }  # fmt: skip
    assert not list(Path(tmp_path).rglob("*.safetensors"))
    options = {"seed": 1, "num_inference_steps": 1, "output_type": "latent"}
    videos = [
        ConsisID.open(tmp_path / "engine").generate(random_identity(manifest.spec.variant), "A man.", **options)
        for _ in range(2)
    ]
    assert (videos[0].latents == videos[1].latents).all()
    assert videos[0].latents.isfinite().all()
