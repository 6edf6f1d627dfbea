"""Checkpoints in the Hugging Face layout: reading them memory-mapped, and writing small ones with random weights."""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configs import EvaConfig, TextConfig, TransformerConfig, VaeConfig
from ..errors import CheckpointError
from ..networks.eva import eva_arguments
from ..networks.retinaface import retinaface_backbone
from ..util.parsing import Unreadable, read_object, shorten
from ..variants import Variant, name_of, own_size
from .face_files import FACE_FILES, FACE_FOLDER, FACE_STATES, locate_face_file, read_face_state
from .part_tensors import PartTensors, StateTensors, StoredTensors
from .weight_files import FLOATS, WeightFiles, choose_weights, has_variant

PARTS = ("transformer", "text_encoder", "vae")
TOKENIZERS = ("spiece.model", "tokenizer.json")  # of two, the first is read; they hold the same
SCHEDULER = "scheduler/scheduler_config.json"


class Checkpoint:
    """A folder with transformer/, text_encoder/, vae/, tokenizer/, scheduler/ and face_encoder/.

    Tensors are read lazily: opening a checkpoint reads configurations and headers only.

    Args:
        path: the folder.
        weights: which files hold the weights, as diffusers' `variant`: "fp16" for `model.fp16.safetensors`.
        only: the files, relative to the folder, that may be read; None for all. What an engine was built from and is
            named in its manifest: files that were added since are not read.

    Raises:
        CheckpointError: a folder or file that is missing or not what it should be.
    """

    def __init__(self, path: str | Path, weights: str | None = None, only: Collection[str] | None = None):
        self.path = Path(path).absolute()  # the process may change its folder
        self.weights, self.only = weights, only
        if not self.path.is_dir():
            raise CheckpointError(f"There is no checkpoint folder at {path}.")
        if weights and not any(has_variant(self._names(part), weights) for part in PARTS):
            raise CheckpointError(f"{path} has no files of the variant {shorten(repr(weights), 40)}; leave it out.")

    @classmethod
    def find(cls, name: str | Path, weights: str | None = None) -> "Checkpoint":
        """A folder, or a Hugging Face hub id, downloaded when it is not in the cache."""
        if _is_folder(name):
            return cls(name, weights)
        shown = shorten(name, 80)
        if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
            raise CheckpointError(
                f"{shown} is neither a folder nor a hub id; give a folder with a ConsisID checkpoint, or an id such as "
                "BestWishYsh/ConsisID-preview."
            )
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return cls(snapshot_download(str(name)), weights)
        except HFValidationError:
            raise CheckpointError(
                f"{shown!r} is neither a folder nor a hub id; an id is an owner and a name, such as "
                "BestWishYsh/ConsisID-preview."
            ) from None
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise CheckpointError(
                f"{shown} is no folder here and could not be fetched from the hub ({type(error).__name__}); check the "
                "network, or download it elsewhere and give the folder."
            ) from error

    def _names(self, folder: str) -> list[str]:
        """The files of a folder of the checkpoint that may be read and are not hidden."""
        if self.only is None:
            try:
                found = [entry.name for entry in (self.path / folder).iterdir()]
            except (FileNotFoundError, NotADirectoryError):
                found = []
        else:
            start = f"{folder}/"
            found = [name.removeprefix(start) for name in self.only if name.startswith(start)]
        return sorted(name for name in found if not name.startswith("."))

    def file(self, name: str) -> Path:
        """The path of a file of the checkpoint.

        Raises:
            CheckpointError: it is missing, or not one of those that may be read.
        """
        if self.only is not None and name not in self.only:
            raise CheckpointError(
                f"{self.path / name} is none of the files that the engine was built from; rebuild the engine."
            )
        path = self.path / name
        if not path.is_file():
            raise CheckpointError(f"{self.path} is not a complete ConsisID checkpoint: {name} is missing.")
        return path

    def config(self, name: str) -> dict[str, Any]:
        """A JSON file of the checkpoint, such as "transformer/config.json"."""
        file = self.file(name)
        try:
            return read_object(file)
        except Unreadable as error:
            raise CheckpointError(f"{file} cannot be read ({error}); download it again.") from None

    @property
    def tokenizer(self) -> Path:
        """The file of the tokenizer: SentencePiece's, or the JSON that transformers 5 writes in its place."""
        found = [name for name in TOKENIZERS if name in self._names("tokenizer")]
        if not found:
            raise CheckpointError(
                f"{self.path} holds neither tokenizer/{' nor tokenizer/'.join(TOKENIZERS)}; it is incomplete."
            )
        return self.file(f"tokenizer/{found[0]}")

    @cached_property
    def transformer(self) -> TransformerConfig:
        """The transformer's configuration. Its fields say which model it is, whatever the class that wrote it."""
        values = self.config("transformer/config.json")
        kind = values.get("_class_name")
        if kind != "ConsisIDTransformer3DModel" and "is_train_face" not in values:
            raise CheckpointError(
                f"{self.path} holds a {shorten(kind, 40)}, not a ConsisID transformer; give a checkpoint of "
                "ConsisID-preview or ConsisID-1.5."
            )
        found: TransformerConfig = self._read(TransformerConfig, "transformer")
        return found

    @cached_property
    def variant(self) -> Variant:
        """The model, from the configuration files; video size and rate from the table's row of the same transformer."""
        transformer = self.transformer
        vae: VaeConfig = self._read(VaeConfig, "vae")
        for part in FACE_FILES if transformer.is_train_face else ():
            self.face_path(part)
        height, width, frames = own_size(transformer, vae)
        found = Variant(
            name=name_of(transformer),
            transformer=transformer,
            vae=vae,
            text=self._read(TextConfig, "text_encoder"),
            eva=self._eva_config(),
            retinaface=retinaface_backbone(self._state("retinaface")) if self._has_face("retinaface") else "resnet50",
            height=height,
            width=width,
            num_frames=frames,
        )
        try:
            found.check()
        except Unreadable as error:
            raise CheckpointError(
                f"The parts of {self.path} do not fit together: {error}; download it again."
            ) from None
        return found

    def _read(self, kind: Any, part: str) -> Any:
        name = f"{part}/config.json"
        values = self.config(name)
        try:
            return kind.read(values)
        except Unreadable as error:
            raise CheckpointError(f"{self.path / name} cannot be used ({error}); download it again.") from None

    def _eva_config(self) -> EvaConfig:
        if not self._has_face("eva"):
            return EvaConfig()
        try:
            return EvaConfig.read(eva_arguments(self._state("eva")))
        except Unreadable as error:
            reason = str(error)
        except Exception as error:  # a state may hold anything
            reason = f"{shorten(error)} not found"
        raise CheckpointError(f"{self.face_path('eva')} is not the EVA02-CLIP tower ({reason}); download it again.")

    def _has_face(self, part: str) -> bool:
        return self._is_there(self.face_file(part))

    def face_file(self, part: str) -> str:
        """Where a face model is, or should be, relative to the checkpoint."""
        return locate_face_file(part, self._is_there)

    def _is_there(self, name: str) -> bool:
        return (self.path / name).is_file() if self.only is None else name in self.only

    def face_path(self, part: str) -> Path:
        """The file of a face model.

        Raises:
            CheckpointError: it is missing.
        """
        name = self.face_file(part)
        try:
            return self.file(name)
        except CheckpointError:
            raise CheckpointError(
                f"{self.path / name} is missing, and without it no photo can be identified; copy {FACE_FOLDER} from "
                "the original checkpoint (diffusers' save_pretrained leaves it out)."
            ) from None

    def _state(self, part: str) -> Mapping[str, Tensor]:
        tensors = self._part(part)
        return {name: tensors.tensor(name) for name in tensors.names()}

    def files(self) -> list[Path]:
        """Everything that an engine reads, relative to the folder: the weights of the three parts, their
        configurations, tokenizer and scheduler, and the face models that are there."""
        names = {SCHEDULER} | {f"{part}/config.json" for part in PARTS}
        names |= {f"tokenizer/{n}" for n in self._names("tokenizer") if n.endswith((".json", ".model"))}
        names |= {self.face_file(part) for part in FACE_FILES if self._has_face(part)}
        for part in PARTS:
            index, stored = self._choice(part).index, self._part(part)
            names |= {f"{part}/{index}"} if index else set()
            if isinstance(stored, StoredTensors):
                names |= {str(file.relative_to(self.path)) for file in stored.places.values()}
        return sorted(Path(name) for name in names if (self.path / name).is_file())

    def _choice(self, part: str) -> WeightFiles:
        try:
            return choose_weights(part, self._names(part), self.weights)
        except Unreadable as error:
            raise CheckpointError(f"{self.path / part} cannot be used: {error}.") from None

    def _part(self, part: str) -> PartTensors:
        if part not in self._parts:
            if part in FACE_STATES:
                self._parts[part] = StateTensors(read_face_state(self.face_path(part), part))
            else:
                self._parts[part] = StoredTensors(self._choice(part), lambda name: self.file(f"{part}/{name}"))
        return self._parts[part]

    @cached_property
    def _parts(self) -> dict[str, PartTensors]:
        return {}

    def has_part(self, part: str) -> bool:
        """Whether it may be asked for tensors of a part."""
        return True

    def has(self, part: str, name: str) -> bool:
        """Whether the checkpoint holds a tensor of that name."""
        return name in self._part(part).names()

    def names(self, part: str) -> Collection[str]:
        """The names of all tensors of a part."""
        return self._part(part).names()

    def _check_has(self, part: str, name: str) -> None:
        if not self.has(part, name):
            raise CheckpointError(f"{self.path / part} has no tensor called {name}; the checkpoint is incomplete.")

    def shape(self, part: str, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it.

        Raises:
            CheckpointError: there is none of that name, or one of whole numbers or of a dtype that needs scales.
        """
        self._check_has(part, name)
        shape, dtype = self._part(part).describe(name)
        if dtype not in FLOATS:
            raise CheckpointError(
                f"{name} in {self.path / part} is {dtype}; weights are read in {', '.join(FLOATS)}, not quantised."
            )
        return shape

    def tensor(self, part: str, name: str, device: torch.device | str = "cpu") -> Tensor:
        """A tensor in the dtype that it is stored in; on the CPU memory-mapped where the format allows, wherever the
        file has it: see weight_files.to_aligned."""
        self._check_has(part, name)
        return self._part(part).tensor(name).to(device)

    def in_place(self, part: str, sources: Sequence[str], device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """These tensors, stacked along the first dimension, where they are on a device in a dtype already: nobody
        copies them then, and nobody may write to them. None where they have to be read."""
        return None


def _is_folder(name: str | Path) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name that is too long for one
        return False
