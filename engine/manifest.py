"""What an engine folder is: the specification that it was built from, where it was built, and a hash of every file."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import Ge, Le, Len
from typing_extensions import TypedDict  # before Python 3.12 pydantic does not know typing's

from .checkpoint.random_weights import PREFIX, RandomWeights
from .checkpoint.reading import Checkpoint
from .checkpoint.weight_files import check_inside, sample_hash
from .configs import Frames, Pixels
from .errors import EngineError, InputError
from .graphs.graph import Graph
from .graphs.grouped import grouped_table
from .graphs.spread import spread_groups, spread_table
from .graphs.table import graph_table
from .shapes import VideoShape
from .util.files import atomic_file, sha256
from .util.machine import executes, provenance
from .util.parsing import MIB, Unreadable, read_object, shorten, validate
from .util.sources import kernels_hash
from .variants import Variant

FORMAT = 1
FILE = "manifest.json"
BYTES = 64 * MIB  # of a manifest at most
PATH = 250  # characters of a path from a manifest that an error shows
DTYPES: Mapping[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

# Choices of a build of engines that hold their weights; backends/tensorrt/, BuildOptions, says what each is.
FLAGS = ("refit", "version_compatible", "hardware_compatible", "plugins")
MOST_DEVICES = 64
Hash = Annotated[str, Len(64, 64)]
Bytes = Annotated[int, Ge(0)]
Seconds = Annotated[float, Ge(0), Le(1e9)]


def digest(values: Mapping[str, Any]) -> str:
    """sha256 of a JSON value: catches edits and damage, not somebody who computes it anew."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class BuildSpec:
    """Everything that decides what an engine computes; two builds of one spec are interchangeable."""

    variant: Variant
    height: Pixels
    width: Pixels
    num_frames: Frames
    dtype: str
    backend: str
    device: str
    kernels: str
    checkpoint: str
    targets: tuple[str, ...] = ()  # compute capabilities of other GPUs, such as "sm_89"; none: the GPU of the build
    layers_per_shard: Annotated[int, Ge(0), Le(1024)] = 0  # 0: a graph per layer, which takes its weights at each call
    flags: tuple[str, ...] = ()  # of FLAGS
    sequence: Annotated[int, Ge(1), Le(MOST_DEVICES)] = 1  # devices that may share the tokens of a video

    @property
    def shape(self) -> VideoShape:
        return VideoShape.of(self.variant, self.height, self.width, self.num_frames)

    @property
    def key(self) -> str:
        """sha256 of the specification; of what is for one device as before there was `sequence`."""
        values = asdict(self)
        if self.sequence == 1:
            del values["sequence"]
        return digest(values)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "BuildSpec":
        """Raises parsing.Unreadable for anything that a build does not write."""
        spec: BuildSpec = validate(cls, dict(values))
        for value, known in ((spec.dtype, tuple(DTYPES)), (spec.device, ("cpu", "cuda"))):
            if value not in known:
                raise Unreadable(f"{shorten(repr(value), 40)} is none of {', '.join(known)}")
        spec.variant.check()
        return spec

    def graphs(self, shape: VideoShape | None = None) -> dict[str, Graph]:
        """The table of its graphs, at its own shape or another."""
        if self.layers_per_shard:
            return grouped_table(self.variant, shape or self.shape, self.layers_per_shard)
        return graph_table(self.variant, shape or self.shape)

    def every_graph(self) -> dict[str, Graph]:
        """Those, and the ones for a share of the tokens."""
        table = spread_groups if self.layers_per_shard else spread_table
        return self.graphs() | (table(self.variant, self.shape, self.sequence) if self.sequence > 1 else {})

    @property
    def bound_to(self) -> tuple[str, ...]:
        """What a compiled folder shares with the machine that opens it: names of `provenance`."""
        names = ["machine", "tensorrt", "tensorrt_rtx"]
        if "version_compatible" in self.flags:
            names = ["machine"]
        if self.targets:
            return tuple(names)
        own = ["torch", "triton", "cpu", "compute_capability", "gpu"]
        return tuple(names + own[: 4 if "hardware_compatible" in self.flags else 5])


@dataclass(frozen=True)
class GraphEntry:
    """One graph of an engine: who compiled it, into which file, and the names of the weights that a call brings."""

    backend: str
    weights: list[str]
    seconds: Seconds  # of compiling
    milliseconds: dict[str, Seconds] = field(default_factory=dict)  # per call, of every candidate that was right
    rejected: dict[str, str] = field(default_factory=dict)  # candidates of "auto" that were not, and why
    file: str | None = None
    bytes: Bytes = 0
    sha256: str = ""


class WeightsEntry(TypedDict):
    """A file of the checkpoint; of safetensors also the hash of samples, weight_files.sample_hash."""

    bytes: Bytes
    sha256: Hash
    sample: NotRequired[Hash]


@dataclass(frozen=True)
class Manifest:
    """manifest.json of an engine folder."""

    spec: BuildSpec
    provenance: dict[str, str]
    graphs: dict[str, GraphEntry]
    checkpoint: str  # where the weights are, relative to the folder when they are bundled
    weights: dict[str, WeightsEntry] = field(default_factory=dict)  # by file

    def write(self, folder: Path) -> None:
        """Write manifest.json, whole or not at all."""
        values = {"format": FORMAT, "key": self.spec.key, **asdict(self)}
        values["digest"] = digest(values)
        with atomic_file(folder / FILE) as aside:
            aside.write_text(json.dumps(values, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a folder.

        Raises:
            EngineError: no engine folder, a manifest that was edited or cut, or one of a newer version.
        """
        file = folder / FILE
        if not os.path.isdir(folder):
            raise EngineError(f"There is no engine folder at {folder}; make one with consisid-build.")
        if not file.is_file():
            raise EngineError(
                f"{folder} is not an engine folder: {FILE} is missing. Make one with consisid-build, or finish an "
                "interrupted build by running it again."
            )
        try:
            values = read_object(file, BYTES)
            found, version = values.pop("digest", None), values.get("format")
            if isinstance(version, int) and version > FORMAT:
                raise EngineError(
                    f"{folder} was built by a newer version of this package (format {version}, here {FORMAT}); "
                    "upgrade consisid, or rebuild the folder."
                )
            if found is not None and found != digest(values):
                raise EngineError(f"{file} was edited after the build; rebuild the folder with consisid-build.")
            if found is None or version != FORMAT:
                raise Unreadable("it has no digest or no format")
            BuildSpec.read(validate(dict[str, Any], values.get("spec"), "spec"))
            manifest: Manifest = validate(cls, values)
            for name in (*manifest.weights, *(graph.file for graph in manifest.graphs.values() if graph.file)):
                check_inside(name)
            manifest.spec.graphs()  # sizes that no table of graphs can be made of
        except (Unreadable, InputError) as error:
            raise EngineError(
                f"{file} is damaged ({shorten(error)}); rebuild the folder with consisid-build."
            ) from None
        if values.get("key") != manifest.spec.key:
            raise EngineError(
                f"{file} is of another specification than its key says; rebuild the folder with consisid-build."
            )
        return manifest

    def checkpoint_path(self, folder: Path) -> Path:
        return folder / self.checkpoint  # an absolute path stays what it is

    def verify(self, folder: Path, device: torch.device, full: bool = False) -> None:
        """Check the folder against this machine and every file against its entry.

        What is executed is read whole; weights by size, header and samples, or whole with full=True.

        Raises:
            EngineError: what is stale, foreign, truncated or changed, and what to do about it.
        """
        spec, here = self.spec, provenance(device)
        compiled = any(entry.file for entry in self.graphs.values())
        if compiled and spec.kernels != kernels_hash():
            raise EngineError(
                f"{folder} was built with other kernel sources than are installed; rebuild it with consisid-build."
            )
        if torch.device(spec.device).type != device.type:
            raise EngineError(
                f"{folder} was built for {spec.device}, not for {device}; rebuild it with --device {device}."
            )
        self.check_target(folder)
        for name in spec.bound_to:
            made, have = self.provenance.get(name), here.get(name)
            if compiled and not (executes(have, made) if name == "cpu" else made == have):
                raise EngineError(
                    f"{folder} was built with {name} {shorten(made, 60)}, this machine has {have}; "
                    "rebuild it here with consisid-build."
                )
        for graph in self.graphs.values():
            if graph.file is not None:
                _check(
                    folder / graph.file, graph.bytes, "sha256", graph.sha256, "rebuild the folder with consisid-build"
                )
        root = self.checkpoint_path(folder)
        if not os.path.isdir(root):  # unlike Path's, no error for a name that is too long
            raise EngineError(
                f"The weights of {folder} are not at {shorten(root, PATH)}; put it back, or rebuild with its new place."
            )
        remedy = f"restore the checkpoint at {root}, or rebuild the folder from the one you have"
        for name, entry in self.weights.items():
            if full or "sample" not in entry:
                _check(root / name, entry["bytes"], "sha256", entry["sha256"], remedy)
            else:
                _check(root / name, entry["bytes"], "sample", entry["sample"], remedy)

    def check_target(self, folder: Path) -> None:
        """Check that there is a GPU that a folder made for other machines was built for.

        Raises:
            EngineError: no GPU, or another.
        """
        targets = self.spec.targets
        if not targets:
            return
        wanted = " or ".join(targets)
        if not torch.cuda.is_available():
            raise EngineError(
                f"{folder} was built for GPUs of {wanted}, and PyTorch sees no GPU on this machine; open it on one of "
                "them, or build for the CPU with --device cpu."
            )
        major, minor = torch.cuda.get_device_capability()
        if f"sm_{major}{minor}" not in targets:
            raise EngineError(
                f"{folder} was built for GPUs of {wanted}, this one is of sm_{major}{minor}; rebuild it with --target "
                f"sm_{major}{minor}, or on this machine."
            )


def _check(file: Path, size: int, kind: str, expected: str, remedy: str) -> None:
    if not os.path.isfile(file):
        raise EngineError(f"{shorten(file, PATH)} is missing; {remedy}.")
    if file.stat().st_size != size:
        raise EngineError(f"{file} has {file.stat().st_size} bytes instead of {size}; {remedy}.")
    if (sample_hash(file) if kind == "sample" else sha256(file)) != expected:
        raise EngineError(f"{file} was changed after the build ({kind} differs); {remedy}.")


def describe_weights(checkpoint: Checkpoint) -> dict[str, WeightsEntry]:
    """Size and hash of every weight file; safetensors also by a sample, which is quick to check."""
    entries = {}
    for name in checkpoint.files():
        file = checkpoint.path / name
        entry: WeightsEntry = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        if file.suffix == ".safetensors":
            entry["sample"] = sample_hash(file)
        entries[str(name)] = entry
    return entries


def weights_hash(weights: Mapping[str, WeightsEntry]) -> str:
    """One hash for all weight files."""
    lines = "".join(f"{name} {entry['sha256']}\n" for name, entry in sorted(weights.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def open_checkpoint(folder: Path, manifest: Manifest) -> Checkpoint:
    """The checkpoint that an engine folder refers to."""
    path, source = manifest.checkpoint_path(folder), manifest.spec.checkpoint
    if source.startswith(PREFIX):
        return RandomWeights(path, manifest.spec.variant, int(source.removeprefix(PREFIX)), manifest.weights)
    return Checkpoint(path, only=manifest.weights)
