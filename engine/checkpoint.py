"""Checkpoints in the Hugging Face layout: reading them memory-mapped, and writing small ones with random weights."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError
from .networks.bisenet import bisenet_state
from .networks.eva import eva_arguments, eva_state
from .networks.retinaface import retinaface_backbone, retinaface_state
from .variants import EvaConfig, TextConfig, TransformerConfig, VaeConfig, Variant, name_of, variant_named

SAMPLES, SAMPLE_BYTES = 16, 4096  # of a file of weights that are looked at whenever it is opened
PARTS = ("transformer", "text_encoder", "vae")
# The face models below face_encoder/, by the name of the graph or ONNX Runtime session.
FACE_FILES = {
    "eva": "EVA02_CLIP_L_336_psz14_s6B.pt",
    "retinaface": "detection_Resnet50_Final.pth",
    "bisenet": "parsing_bisenet.pth",
    "scrfd": "models/antelopev2/scrfd_10g_bnkps.onnx",
    "arcface": "models/antelopev2/glintr100.onnx",
}
FACE_STATES = {"eva": eva_state, "retinaface": retinaface_state, "bisenet": bisenet_state}


def sample_hash(path: Path) -> str:
    """sha256 of a safetensors header (names, dtypes, shapes and places of all tensors) and of SAMPLES pieces of the
    tensors, the first and the last bytes among them: quick, and weights that were trained further are told apart unless
    they differ only in between."""
    with path.open("rb") as file:
        length = file.read(8)
        digest = hashlib.sha256(length + file.read(int.from_bytes(length, "little")))
        begin = file.tell()
        last = max(begin, file.seek(0, os.SEEK_END) - SAMPLE_BYTES)
        for i in range(SAMPLES):
            file.seek(begin + (last - begin) * i // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()


class Checkpoint:
    """A folder with transformer/, text_encoder/, vae/, tokenizer/, scheduler/ and face_encoder/.

    Tensors are read lazily: opening a checkpoint reads configurations and headers only.

    Raises:
        CheckpointError: a folder or file that is missing or not what it should be.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise CheckpointError(f"There is no checkpoint folder at {self.path}.")

    @classmethod
    def find(cls, name: str | Path) -> "Checkpoint":
        """A folder, or a Hugging Face hub id, downloaded when it is not in the cache."""
        if Path(name).is_dir():
            return cls(name)
        if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
            raise CheckpointError(
                f"{name} is neither a folder nor a hub id; give a folder with a ConsisID checkpoint, or an id such as "
                "BestWishYsh/ConsisID-preview."
            )
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return cls(snapshot_download(str(name)))
        except HFValidationError:
            raise CheckpointError(
                f"{name!r} is neither a folder nor a hub id; an id is an owner and a name, such as "
                "BestWishYsh/ConsisID-preview."
            ) from None
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise CheckpointError(
                f"{name} is no folder here and could not be fetched from the hub ({type(error).__name__}); check the "
                "network, or download it elsewhere and give the folder."
            ) from error

    def config(self, name: str) -> dict[str, Any]:
        """A JSON file of the checkpoint, such as "transformer/config.json"."""
        file = self.path / name
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            raise CheckpointError(f"{self.path} is not a complete ConsisID checkpoint: {name} is missing.") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file} is not valid JSON ({error}); download it again.") from None

    @cached_property
    def variant(self) -> Variant:
        """The model, from the configuration files; video size and rate from the table's row of the same transformer."""
        values = self.config("transformer/config.json")
        kind = values.get("_class_name")
        if kind != "ConsisIDTransformer3DModel":
            raise CheckpointError(
                f"{self.path} holds a {kind}, not a ConsisID transformer; give a ConsisID-preview checkpoint."
            )
        transformer = TransformerConfig.read(values)
        vae = VaeConfig.read(self.config("vae/config.json"))
        ratio = vae.spatial_ratio
        size = transformer.sample_height * ratio, transformer.sample_width * ratio, transformer.sample_frames
        name = name_of(transformer)
        if name != "custom":
            row = variant_named(name)
            size = row.height, row.width, row.num_frames
        return Variant(
            name=name,
            transformer=transformer,
            vae=vae,
            text=TextConfig.read(self.config("text_encoder/config.json")),
            eva=self._eva_config(),
            retinaface=retinaface_backbone(self._face("retinaface")) if self._has_face("retinaface") else "resnet50",
            height=size[0],
            width=size[1],
            num_frames=size[2],
        )

    def _eva_config(self) -> EvaConfig:
        try:
            return EvaConfig(**eva_arguments(self._face("eva"))) if self._has_face("eva") else EvaConfig()
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}/face_encoder/{FACE_FILES['eva']} is not the EVA02-CLIP tower ({error} not found); "
                "download it again."
            ) from None

    def _has_face(self, part: str) -> bool:
        return (self.path / "face_encoder" / FACE_FILES[part]).exists()

    def _face(self, part: str) -> Mapping[str, Tensor]:
        if part not in self._faces:
            file = self.path / "face_encoder" / FACE_FILES[part]
            try:
                state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except FileNotFoundError:
                raise CheckpointError(f"{file} is missing; without it no photo can be identified.") from None
            except Exception as error:  # torch.load raises whatever its unpickler trips over
                raise CheckpointError(f"{file} cannot be read ({error}); download it again.") from error
            for wrapper in ("state_dict", "model"):
                state = state.get(wrapper, state)
            self._faces[part] = FACE_STATES[part](state)
        return self._faces[part]

    @cached_property
    def _faces(self) -> dict[str, Mapping[str, Tensor]]:
        return {}

    def files(self) -> list[Path]:
        """Everything that an engine reads, relative to the folder: the weights of the three parts, configurations,
        tokenizer and scheduler, and the face models that are there."""
        found = {file for part in PARTS for file in self._index(part).values()}
        found |= {file for part in PARTS for file in (self.path / part).glob("*.json")}
        found |= {
            file for part in ("tokenizer", "scheduler", "face_encoder") for file in (self.path / part).rglob("*.*")
        }
        return sorted(file.relative_to(self.path) for file in found if file.is_file())

    def _index(self, part: str) -> dict[str, Path]:
        if part not in self._indices:
            folder = self.path / part
            shards = sorted(folder.glob("*.safetensors.index.json"))
            if shards:
                weights = self.config(f"{part}/{shards[0].name}")["weight_map"]
                self._indices[part] = {name: folder / file for name, file in weights.items()}
            else:
                files = sorted(folder.glob("*.safetensors"))
                if len(files) != 1:
                    raise CheckpointError(
                        f"{folder} holds {len(files)} .safetensors files and no index; one is needed, or shards "
                        "with their index. Weights in other formats are not read."
                    )
                self._indices[part] = dict.fromkeys(self._open(files[0]).keys(), files[0])
        return self._indices[part]

    @cached_property
    def _indices(self) -> dict[str, dict[str, Path]]:
        return {}

    @cached_property
    def _handles(self) -> dict[Path, Any]:
        return {}

    def _open(self, file: Path) -> Any:
        if file not in self._handles:
            try:
                self._handles[file] = safe_open(file, framework="pt", device="cpu")
            except (FileNotFoundError, SafetensorError) as error:
                raise CheckpointError(f"{file} is missing or damaged ({error}); download it again.") from None
        return self._handles[file]

    def has(self, part: str, name: str) -> bool:
        """Whether the checkpoint holds a tensor of that name."""
        return name in (self._face(part) if part in FACE_STATES else self._index(part))

    def tensor(self, part: str, name: str, device: torch.device | str = "cpu") -> Tensor:
        """A tensor in the dtype that it is stored in; on the CPU memory-mapped where the format allows."""
        if not self.has(part, name):
            raise CheckpointError(f"{self.path / part} has no tensor called {name}; the checkpoint is incomplete.")
        if part in FACE_STATES:
            return self._face(part)[name].to(device)
        return self._open(self._index(part)[name]).get_tensor(name).to(device)


def write_checkpoint(
    variant: str | Variant, path: str | Path, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a checkpoint with seeded random weights in the Hugging Face layout that diffusers opens.

    Args:
        variant: a row of VARIANTS or its name. Meant for TINY and small models of one's own.
        path: the folder to write; it must not exist yet. It is written aside and renamed.
        seed: the same seed gives the same bytes.
        dtype: of the stored weights of transformer, text encoder and VAE.

    Returns:
        The folder.
    """
    from .random_checkpoint import write_random

    return write_random(variant_named(variant) if isinstance(variant, str) else variant, Path(path), seed, dtype)
