"""Which files of a checkpoint's part hold its weights: as diffusers and transformers choose them."""

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torch import Tensor

from ..util.parsing import MIB, Unreadable, read_object, shorten, validate

# How the libraries that write them call the files of a part, and which they take where a folder has both a whole file
# and an index of shards: transformers the file, diffusers the index.
STEMS = {"transformer": "diffusion_pytorch_model", "text_encoder": "model", "vae": "diffusion_pytorch_model"}
WHOLE_FIRST = ("text_encoder",)
INDEX = re.compile(r"\.safetensors\.index(\.[^.]+)?\.json$")
INDEX_BYTES = 64 * MIB
HEADER = 100 * MIB  # of a safetensors file: the most that the format allows
SAMPLES, SAMPLE_BYTES = 16, 4096  # of a file of weights that are looked at whenever it is opened
# What weights may be stored in, as safetensors and PyTorch call it: all else is whole numbers, or needs scales.
FLOATS = {"F64": "torch.float64", "F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16"}
ALIGNMENT = 64  # bytes, of what PyTorch allocates on the CPU


def check_inside(name: str) -> str:
    """A relative path, if it stays in the folder that it is relative to.

    Raises:
        Unreadable: it does not.
    """
    parts = re.split(r"[/\\]", name)
    if not name or "\0" in name or PurePosixPath(name).is_absolute() or ".." in parts or ":" in parts[0]:
        raise Unreadable(f"it names {shorten(repr(name), 80)}, which is not a file inside its folder")
    return name


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a part: one file, or an index and the file of every tensor; names within the part's folder."""

    file: str | None = None
    index: str | None = None


def choose_weights(part: str, names: Collection[str], variant: str | None = None) -> WeightFiles:
    """The files of a part's weights among the names in its folder. Hidden files, such as macOS' `._x`, do not count.

    Args:
        variant: as diffusers has it, "fp16" for `model.fp16.safetensors`; a part that has no such files has the
            ordinary ones.

    Raises:
        Unreadable: none, or several of which none has the name that diffusers looks for.
    """
    seen = {name for name in names if not name.startswith(".")}
    for infix in (f".{variant}", "") if variant else ("",):
        whole = WeightFiles(file=f"{STEMS[part]}{infix}.safetensors")
        shards = WeightFiles(index=f"{STEMS[part]}.safetensors.index{infix}.json")
        for kind in (whole, shards) if part in WHOLE_FIRST else (shards, whole):
            if (kind.file or kind.index) in seen:
                return kind
    indices = [name for name in seen if INDEX.search(name)]
    files = [name for name in seen if name.endswith(".safetensors")]
    if len(indices) == 1:
        return WeightFiles(index=indices[0])
    if not indices and len(files) == 1:
        return WeightFiles(file=files[0])
    raise Unreadable(
        f"it holds {len(files)} .safetensors files and {len(indices)} indices, and none is called {STEMS[part]}; one "
        "file is needed, or shards with their index (weights in other formats are not read)"
    )


def has_variant(names: Collection[str], variant: str) -> bool:
    """Whether a folder has weights of a variant."""
    return any(f".{variant}." in name or f".{variant}-" in name for name in names if not name.startswith("."))


def read_index(file: Path) -> Mapping[str, str]:
    """The file of every tensor, from an index.

    Raises:
        FileNotFoundError, Unreadable: no index, a damaged one, or one that names a file outside its folder.
    """
    found: dict[str, str] = validate(dict[str, str], read_object(file, INDEX_BYTES).get("weight_map"), "weight_map")
    for name in set(found.values()):
        check_inside(name)
    return found


def sample_hash(path: Path) -> str:
    """sha256 of a safetensors header (names, dtypes, shapes and places of all tensors) and of SAMPLES pieces of the
    tensors, the first and the last bytes among them: quick, and weights that were trained further are told apart unless
    they differ only in between."""
    with path.open("rb") as file:
        length = file.read(8)
        # A longer header is none, and would be read into memory.
        digest = hashlib.sha256(length + file.read(min(int.from_bytes(length, "little"), HEADER)))
        begin = file.tell()
        last = max(begin, file.seek(0, os.SEEK_END) - SAMPLE_BYTES)
        for i in range(SAMPLES):
            file.seek(begin + (last - begin) * i // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()


def to_aligned(tensor: Tensor) -> Tensor:
    """A tensor on the CPU at an address that is a multiple of ALIGNMENT, copied where it is not.

    Kernels of the CPU add in another order at other addresses, and where a mapped tensor begins depends on what else
    is in its file: without this, the same weights in another file make another video.
    """
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT else tensor
