"""`pipe.compile()`: the engine folder of a pipeline's checkpoint, found or built."""

import gc
import logging
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch

from ..api import ConsisID
from ..checkpoint.reading import FACE_FOLDER, Checkpoint
from ..checkpoint.weight_files import sample_hash
from ..errors import EngineError, InputError
from ..lora.mixin import Adapters
from ..manifest import DTYPES, FILE, Manifest
from ..memory.costs import video_costs
from ..memory.planner import plan
from ..memory.simulate import machine_named
from ..shapes import VideoShape
from ..util.files import as_path
from ..util.machine import provenance
from ..util.sources import kernels_hash
from .loaded import Released
from .parts import Parts

LOG = logging.getLogger("consisid")
FOLDER = Path(".cache") / "consisid" / "engines"  # of the home folder


class Compiling(Parts):
    """From modules to compiled graphs by one call."""

    def compile(
        self, folder: str | PathLike[str] | None = None, backend: str = "auto", *, height: int | None = None,
        width: int | None = None, num_frames: int | None = None,
    ) -> Self:  # fmt: skip
        """Go on with the engine folder of this checkpoint, which is built where there is none: minutes, once.

        Scheduler, LoRAs and memory savers stay; the modules give way to the folder's graphs. Weights that were changed
        in memory are saved into the folder.

        Args:
            folder: the engine folder; by default one in ~/.cache/consisid/engines, found by what it was built from.
            backend: who compiles, as consisid-build has it.
            height, width, num_frames: of the videos; default what the model was trained at. Compiled graphs make no
                others.

        Raises:
            InputError: a folder that is of something else; CheckpointError: what no engine can be built from.
        """
        if self.opened is not None:
            return self
        device, dtype = self._place()
        name = next(name for name, kind in DTYPES.items() if kind is dtype)
        with self._checkpoint() as (checkpoint, bundle):
            shape = VideoShape.of(checkpoint.variant, height, width, num_frames)
            wanted = {
                "variant": checkpoint.variant, "dtype": name, "backend": backend, "device": device.type,
                "kernels": kernels_hash(), "shape": shape,
            }  # fmt: skip
            found = _find(as_path(folder) if folder is not None else None, wanted, checkpoint)
            if not (found / FILE).is_file():
                LOG.info("Building %s with %s: this takes minutes, once.", found, backend)
                # The one place at run time that builds: by name, since what is below does not know who builds it.
                build: Callable[..., Any] = import_module("consisid.export").build
                found.parent.mkdir(parents=True, exist_ok=True)
                build(
                    checkpoint.path, found, backend=backend, dtype=name, device=str(device), height=shape.height,
                    width=shape.width, num_frames=shape.num_frames, bundle=bundle, variant=checkpoint.weights,
                    report=lambda graph, entry, total: LOG.info("%s: %s, %.1f s", graph, entry.backend, entry.seconds),
                )  # fmt: skip
        # All that can be refused is, before the modules go.
        manifest = Manifest.read(found)
        manifest.verify(found, device)
        rows = not manifest.spec.layers_per_shard
        costs = partial(video_costs, manifest.spec.variant, shape, dtype, device=device.type, rows=rows)
        gpu = provenance(device).get("gpu", "")
        memory = self.savers.budget(device, gpu, costs)
        if memory is not None:
            plan(memory, costs(), machine_named(gpu))
        self._give_way(lambda: ConsisID.open(found, device=device, memory=memory), manifest.checkpoint_path(found))
        self._granted = None  # a saver's budget ends with the saver
        return self

    def _give_way(self, open: Callable[[], ConsisID], checkpoint: Path) -> None:
        """Go on with an engine folder, which is opened when the modules are gone that nobody else holds: memory has
        room for one of both. If it does not open, the pipeline has them again.

        Args:
            checkpoint: a folder with the modules' weights, which are read again then.
        """
        tiling = self.savers.tiling
        with self._making:
            put_back = self._let_go(checkpoint, tiling)
            try:
                engine = open()
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)  # they hold what was opened so far
                put_back()
                raise
            self._become(engine, tiling)

    def _let_go(self, checkpoint: Path, tiling: bool) -> Callable[[], None]:
        """Hold the modules no longer, nor what was computed with them; a function that gets them back."""
        modules = {name: module for name, module in self._modules.items() if module is not None}
        variant = self._origin.variant if self._origin is not None else None
        released = {name: Released.of(module, variant) for name, module in modules.items()}
        origin = self._unchanged
        kept = Adapters()
        if self._last is not None:
            kept.adopt(self._last)
        self._last, self._made, self._latest = kept, {}, None
        for name in modules:
            object.__setattr__(self, name, None)
        del modules
        gc.collect()  # engines and modules refer to themselves
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

        def put_back() -> None:
            for name, each in released.items():
                object.__setattr__(self, name, each.back(checkpoint / name))
            if tiling:
                self.vae.enable_tiling()
            if origin is not None:
                self._origin = replace(origin, state=self.state)

        return put_back

    @contextmanager
    def _checkpoint(self) -> Iterator[tuple[Checkpoint, bool]]:
        """A checkpoint of the present weights, and whether it is gone afterwards."""
        source = self._origin
        if source is not None and self._unchanged is not None:
            yield Checkpoint.find(source.name, source.variant), False
            return
        with tempfile.TemporaryDirectory(prefix="consisid-") as place:
            self.save_pretrained(place)
            if source is not None:
                faces = Checkpoint.find(source.name).path / FACE_FOLDER
                if faces.is_dir():
                    shutil.copytree(faces, Path(place) / FACE_FOLDER)
            yield Checkpoint(place), True


def _find(folder: Path | None, wanted: dict[str, Any], checkpoint: Checkpoint) -> Path:
    """The engine folder that was built from these weights in this way, or where it is to be.

    Raises:
        InputError: a folder that was named and is of something else.
    """
    if folder is not None:
        if folder.exists() and not _is_of(folder, wanted, checkpoint):
            raise InputError(f"{folder} is there, and is no engine of these weights and settings; name another folder.")
        return folder
    root = Path.home() / FOLDER
    for known in sorted(root.iterdir()) if root.is_dir() else ():
        if _is_of(known, wanted, checkpoint):
            return known
    stem = f"{checkpoint.variant.name}-{wanted['backend']}-{wanted['dtype']}-{wanted['device']}"
    number = next(i for i in range(10**6) if not (root / f"{stem}-{i}").exists())
    return root / f"{stem}-{number}"


def _is_of(folder: Path, wanted: dict[str, Any], checkpoint: Checkpoint) -> bool:
    try:
        manifest = Manifest.read(folder)
    except EngineError:
        return False
    if any(getattr(manifest.spec, name) != value for name, value in wanted.items()):
        return False
    if manifest.weights.keys() != {str(name) for name in checkpoint.files()}:
        return False  # other files of the same checkpoint, such as those of a variant
    files = {name: entry["sample"] for name, entry in manifest.weights.items() if "sample" in entry}
    return all(sample_hash(checkpoint.path / name) == sample for name, sample in files.items())
