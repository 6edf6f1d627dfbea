"""Files of our own: safetensors with a JSON in the header, and a hash of everything in them.

The hash finds damage and edits. It does not say who wrote a file: whoever edits one can compute it anew.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import atomic_file, unwritable
from .parsing import Unreadable, parse_json, refuse_pointer, shorten

VALUES, SEAL = "consisid", "sha256"  # entries of the header


def seal_of(tensors: Mapping[str, Tensor], values: str) -> str:
    """sha256 of names, dtypes, shapes and bytes of tensors on the CPU, and of a text."""
    digest = hashlib.sha256(values.encode() + b"\0")
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_sealed(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object, whole or not at all.

    Raises:
        WriteError: no space, no permission, no such place.
    """
    # Copies: safetensors refuses tensors that share memory.
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(values)
    with atomic_file(path) as aside:
        try:
            save_file(kept, aside, {VALUES: text, SEAL: seal_of(kept, text)})
        except (SafetensorError, OSError) as error:
            raise unwritable(path, error) from error


def load_sealed(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What save_sealed wrote.

    Raises:
        FileNotFoundError: there is no such file.
        Unreadable: it is of something else, damaged, or was changed.
    """
    try:
        with open(path, "rb") as file:
            refuse_pointer(file.read(64))
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise error if isinstance(error, Unreadable) else Unreadable(shorten(error)) from None
    if not {VALUES, SEAL} <= header.keys():
        raise Unreadable("it is another file, or of another version")
    if header[SEAL] != seal_of(tensors, header[VALUES]):
        raise Unreadable("its content is not what was written")
    values = parse_json(header[VALUES])
    if not isinstance(values, dict):
        raise Unreadable("its header holds no object")
    return tensors, values
