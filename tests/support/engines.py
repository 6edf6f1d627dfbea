"""Folders that are made once for all tests, and engines whose graphs are compiled in part or not at all."""

import fcntl
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from consisid.engine.manifest import Manifest, provenance
from consisid.engine.util.sources import kernels_hash
from consisid.engine.variants import TINY
from consisid.export import build, entries
from consisid.export import compile as choose

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "tests" / ".cache"  # what is compiled is kept there between runs; `make clean` removes it
KEPT = 3  # of other versions of PyTorch, or of sources that somebody went back to
# What decides, besides kernels_hash(), what is in a compiled folder.
SOURCES = (
    "export", "engine/checkpoint", "engine/manifest.py", "engine/configs.py", "engine/variants.py", "engine/shapes.py",
    "tests/support/engines.py",
)  # fmt: skip

PHOTO = frozenset({"eva", "retinaface", "bisenet"})  # a third of the time; `make face-parity` compiles them
# Graphs in which Inductor makes one loop of several operators; what else runs are single products, which it leaves to
# oneDNN. FUSED has one of each kind, the decoder's, which takes a minute, by the encoder: `make test-all` compiles all.
FUSED = frozenset({"block", "head", "face", "vae_encode"})
ALL_FUSED = FUSED | {"embed", "last_block", "face_extract", "decode_first"}
# TINY with the shallowest decoder: every kind of layer is in it, and compiling it takes a third of the time.
SHALLOW = replace(
    TINY,
    name="custom",
    vae=replace(TINY.vae, layers_per_block=1, block_out_channels=(8, 8, 16, 16)),
)

# TINY without learned positions, which hold for its own size only.
ANY_SIZE = replace(TINY, name="custom", transformer=replace(TINY.transformer, use_learned_positional_embeddings=False))


def once(factory: pytest.TempPathFactory, worker: str, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is made once per session, whichever of the parallel workers asks first."""
    root = factory.getbasetemp() if worker == "master" else factory.getbasetemp().parent
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / name).exists():
            make(root / name)
    return root / name


def kept(folder: Path, make: Callable[[Path], object]) -> None:
    """A folder that is made once for as long as PyTorch, the machine and the sources stay the same: its files are links
    to those in CACHE. Tests replace files and do not write into them."""
    digest = hashlib.sha256(kernels_hash().encode())
    machine = provenance(torch.device("cpu"))
    digest.update(f"{sys.version} {torch.__version__} {sorted(machine.items())} {folder.name}".encode())
    for file in sorted(file for name in SOURCES for file in (ROOT / name, *(ROOT / name).rglob("*.py"))):
        if file.is_file():
            digest.update(file.read_bytes())
    place = CACHE / folder.name / digest.hexdigest()[:16]
    if not place.exists():
        others = sorted(place.parent.glob("*"), key=lambda folder: folder.stat().st_mtime)
        for stale in others[: 1 - KEPT]:
            shutil.rmtree(stale, ignore_errors=True)
        aside = folder.with_name(f"{folder.name}.new")
        make(aside)
        part = place.with_name(secrets.token_hex(8))
        shutil.copytree(aside, part)
        with suppress(OSError):  # another run was here first
            part.rename(place)
    shutil.copytree(place, folder, copy_function=os.link if same_device(place, folder.parent) else shutil.copy2)


def same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def build_in_part(checkpoint: Path, folder: Path, compiled: Callable[[str], bool], **options: Any) -> Manifest:
    """A build by inductor in which only some graphs are compiled; the others are eager."""

    def choose_backend(graph, place, spec, *rest):
        return entries.compiled(graph, place, spec if compiled(graph.name) else replace(spec, backend="eager"), *rest)

    with pytest.MonkeyPatch.context() as patch:
        # The package's name of the module is the function.
        patch.setattr(sys.modules["consisid.export.build"], "compiled", choose_backend)
        return build(checkpoint, folder, backend="inductor", **options)


def build_stand_in(checkpoint: Path, folder: Path, **options: Any) -> Manifest:
    """A build by inductor whose packages are bytes that nothing can load: for what is decided before anything is."""

    def compile(name, graph, stem, device, dtype):
        file = stem.with_suffix(".pt2")
        file.write_bytes(hashlib.sha256(graph.name.encode()).digest() * (100 + len(graph.name)))
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "_compile", compile)
        return build(checkpoint, folder, backend="inductor", **options)


class StandInPackage:
    """What loads such a package, in the place of torch._C._aoti.AOTIModelPackageLoader."""

    def __init__(self, *given: Any):
        self.file = given[0]

    def get_metadata(self) -> dict[str, str]:
        return {"most_samples": "4096"}
