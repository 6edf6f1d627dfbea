"""An engine that could be the wrong one is refused, with the reason and the remedy, before anything of it is loaded."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from support.engines import StandInPackage, build_stand_in

from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.errors import ConsisIDError, EngineError
from consisid.engine.manifest import BuildSpec, Manifest, digest

WEIGHTS = "checkpoint/transformer/diffusion_pytorch_model.safetensors"
EVA = "checkpoint/face_encoder/EVA02_CLIP_L_336_psz14_s6B.pt"
ARCFACE = "checkpoint/face_encoder/models/antelopev2/glintr100.onnx"


@pytest.fixture(scope="module")
def stand_in(tiny_checkpoint, tmp_path_factory):
    """TINY as if compiled: what is refused is refused before a package is loaded."""
    folder = tmp_path_factory.mktemp("stand-in") / "engine"
    build_stand_in(tiny_checkpoint, folder, bundle=True)
    return folder


@pytest.fixture
def folder(stand_in, tmp_path):
    """A copy of that engine; its files are links until a case replaces them."""
    return shutil.copytree(stand_in, tmp_path / "engine", copy_function=os.link)


@pytest.fixture
def loadable(monkeypatch):
    """Whether its packages are loaded is counted."""
    loaded = []

    def load(*given):
        loaded.append(given[0])
        return StandInPackage(*given)

    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", load)
    return loaded


def replace(file, content):
    file.unlink()  # the link, not what it points to
    file.write_bytes(content)


def flip(file, position=None):
    """Change one bit, in the last third of the file where nothing else is said."""
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3 if position is None else position] ^= 1
    replace(file, bytes(content))


def truncate(file):
    replace(file, file.read_bytes()[:-1])


def swap(file, other):
    replace(file, other.read_bytes())


def edit(folder, change, *, sign=False, rekey=False):
    """Change the manifest; with sign=True as a build elsewhere would have written it."""
    file = folder / "manifest.json"
    values = json.loads(file.read_text())
    change(values)
    if sign:
        values.pop("digest")
        if rekey:
            values["key"] = BuildSpec.read(values["spec"]).key
        values["digest"] = digest(values)
    replace(file, json.dumps(values).encode())


def set_in(*path, value):
    def change(values):
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


def other_checkpoint(folder):
    shutil.rmtree(folder / "checkpoint")
    write_checkpoint("tiny", folder / "checkpoint", seed=1)


def other_transformer(folder):
    """As a fine-tune would be: same shapes, same face models, other weights."""
    other = write_checkpoint("tiny", folder.parent / "other", seed=1)
    swap(folder / WEIGHTS, other / "transformer" / Path(WEIGHTS).name)


REBUILD = "consisid-build"
CASES = {
    "graph flipped": (lambda f: flip(f / "graphs/block.pt2"), "block.pt2 was changed", REBUILD),
    "graph flipped at its start": (lambda f: flip(f / "graphs/head.pt2", 0), "head.pt2 was changed", REBUILD),
    "graph truncated": (lambda f: truncate(f / "graphs/block.pt2"), "block.pt2 has", REBUILD),
    "graph empty": (lambda f: replace(f / "graphs/eva.pt2", b""), "has 0 bytes instead of", REBUILD),
    "graph missing": (lambda f: (f / "graphs/eva.pt2").unlink(), "eva.pt2 is missing", REBUILD),
    "graphs swapped": (lambda f: swap(f / "graphs/block.pt2", f / "graphs/last_block.pt2"), "block.pt2", REBUILD),
    "graph of the same size": (
        lambda f: replace(f / "graphs/face.pt2", os.urandom((f / "graphs/face.pt2").stat().st_size)),
        "face.pt2 was changed",
        REBUILD,
    ),
    "no graphs": (lambda f: shutil.rmtree(f / "graphs"), "is missing", REBUILD),
    "manifest: spec edited": (lambda f: edit(f, set_in("spec", "num_frames", value=9)), "was edited", REBUILD),
    "manifest: hash edited": (
        lambda f: edit(f, set_in("graphs", "block", "sha256", value="0" * 64)),
        "was edited",
        REBUILD,
    ),
    "manifest: weights edited": (
        lambda f: edit(f, lambda v: v["graphs"]["block"]["weights"].reverse()),
        "was edited",
        REBUILD,
    ),
    "manifest: graph dropped": (lambda f: edit(f, lambda v: v["graphs"].pop("face")), "was edited", REBUILD),
    "manifest cut": (lambda f: truncate(f / "manifest.json") or truncate(f / "manifest.json"), "is damaged", REBUILD),
    "manifest not JSON": (lambda f: replace(f / "manifest.json", b"\xff\xfe"), "is damaged", REBUILD),
    "manifest of a list": (lambda f: replace(f / "manifest.json", b"[]"), "is damaged", REBUILD),
    "manifest without graphs": (lambda f: edit(f, lambda v: v.pop("graphs"), sign=True), "is damaged", REBUILD),
    "manifest missing": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing", REBUILD),
    "manifest of another key": (
        lambda f: edit(f, set_in("key", value="0" * 64), sign=True),
        "another specification than its key",
        REBUILD,
    ),
    "newer format": (lambda f: edit(f, set_in("format", value=99), sign=True), "newer version", "upgrade"),
    "other torch": (
        lambda f: edit(f, set_in("provenance", "torch", value="2.12.0"), sign=True),
        "with torch 2.12.0, this machine has",
        REBUILD,
    ),
    "other GPU": (
        lambda f: edit(f, set_in("provenance", "gpu", value="NVIDIA H200"), sign=True),
        "with gpu NVIDIA H200, this machine has",
        REBUILD,
    ),
    "other capability": (
        lambda f: edit(f, set_in("provenance", "compute_capability", value="9.0"), sign=True),
        "with compute_capability 9.0",
        REBUILD,
    ),
    "other processor": (
        lambda f: edit(f, set_in("provenance", "machine", value="aarch64"), sign=True),
        "with machine aarch64",
        REBUILD,
    ),
    "other device": (
        lambda f: edit(f, set_in("spec", "device", value="cuda"), sign=True, rekey=True),
        "cuda",
        "CPU|--device|consisid-build",
    ),
    "other kernels": (
        lambda f: edit(f, set_in("spec", "kernels", value="0" * 64), sign=True, rekey=True),
        "other kernel sources",
        REBUILD,
    ),
    "checkpoint gone": (
        lambda f: shutil.rmtree(f / "checkpoint"),
        "weights of .* are not at",
        "put it back",
    ),
    "another checkpoint": (other_checkpoint, "was changed after the build", "restore"),
    "another transformer": (other_transformer, "sample differs", "restore"),
    "weights truncated": (lambda f: truncate(f / WEIGHTS), "bytes instead of", "restore"),
    "weights missing": (lambda f: (f / WEIGHTS).unlink(), "is missing", "restore"),
    "header flipped": (lambda f: flip(f / WEIGHTS, 40), "sample differs", "restore"),
    "face tower flipped": (lambda f: flip(f / EVA), "sha256 differs", "restore"),
    "ArcFace flipped": (lambda f: flip(f / ARCFACE), "sha256 differs", "restore"),
    "a file": (lambda f: (shutil.rmtree(f), f.write_bytes(b"")), "no engine folder at", REBUILD),
    "nothing": (shutil.rmtree, "no engine folder at", REBUILD),
    "empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "not an engine folder", REBUILD),
    "half-built": (
        lambda f: ((f / "manifest.json").unlink(), (f / "spec.key").write_text("key")),
        "not an engine folder",
        "finish an interrupted build",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(folder, case, loadable):
    change, reason, remedy = CASES[case]
    change(folder)
    with pytest.raises(ConsisIDError, match=f"(?s){reason}.*({remedy})"):
        ConsisID.open(folder)
    assert not loadable


@pytest.fixture(scope="module")
def another(stand_in, tmp_path_factory):
    """What each file of an engine is in another of the same size: another checkpoint's, and graphs in each other's
    places."""
    other = tmp_path_factory.mktemp("another")
    write_checkpoint("tiny", other / "checkpoint", seed=1)
    executed = [stand_in / entry.file for entry in Manifest.read(stand_in).graphs.values()]
    (other / "graphs").mkdir()
    for file, place in zip(executed, (*executed[1:], executed[0]), strict=True):
        os.link(file, other / "graphs" / place.name)
    return other


DAMAGE = {
    "flipped": lambda file, other: flip(file),
    "truncated": lambda file, other: truncate(file),
    "missing": lambda file, other: file.unlink(),
    "swapped": swap,
}


def test_every_file_of_an_engine_is_guarded(folder, another):
    """All files that the manifest names, each damaged in every way, one after the other."""
    manifest = Manifest.read(folder)
    executed = [entry.file for entry in manifest.graphs.values()]
    read = [f"checkpoint/{name}" for name in manifest.weights]
    assert {path.suffix for path in map(Path, read)} == {".safetensors", ".json", ".model", ".pt", ".pth", ".onnx"}
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert files - {*executed, *read} == {"manifest.json", "checkpoint/model_index.json"}  # not read by an engine
    cases, alike = 0, set()
    for name in (*executed, *read):
        whole = (folder / name).read_bytes()
        for kind, damage in DAMAGE.items():
            if kind == "swapped" and (another / name).read_bytes() == whole:
                alike.add(Path(name).name)
                continue
            damage(folder / name, another / name)
            with pytest.raises(EngineError, match=f"{Path(name).name} (was changed|has|is missing).*(rebuild|restore)"):
                # A bit of weights is missed without verify=True; all else is always seen.
                manifest.verify(folder, torch.device("cpu"), full=kind == "flipped")
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_bytes(whole)
            cases += 1
    assert cases > 130
    # One for all seeds: configurations, tokenizer, and networks with hand-set weights.
    weights = {name for name in alike if not name.endswith(".json")}
    assert weights == {"spiece.model", "scrfd_10g_bnkps.onnx", "detection_Resnet50_Final.pth", "parsing_bisenet.pth"}
    manifest.verify(folder, torch.device("cpu"), full=True)


def test_flipped_weights_are_found_by_verify_alone(folder, loadable):
    """The header, the size and the samples are as they were: only reading everything shows it."""
    flip(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)
    ConsisID.open(folder)
    with pytest.raises(EngineError, match=r"sha256 differs.*restore"):
        ConsisID.open(folder, verify=True)


def test_a_whole_copy_opens(folder, loadable):
    manifest = Manifest.read(folder)
    assert ConsisID.open(folder, verify=True).manifest == manifest
    assert sorted(Path(file).name for file in loadable) == sorted(Path(e.file).name for e in manifest.graphs.values())
