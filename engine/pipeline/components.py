"""An engine made of components in memory: their modules' tensors are the weights of its graphs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..api import ConsisID
from ..checkpoint.reading import FACE_FILES, PARTS, Checkpoint
from ..checkpoint.weight_files import ALIGNMENT
from ..conditioning import Conditioner
from ..configs import EvaConfig, TextConfig, TransformerConfig, VaeConfig
from ..errors import CheckpointError, InputError
from ..face.extractor import Faces
from ..manifest import DTYPES, BuildSpec, Manifest, WeightsEntry
from ..text import TextEncoder, Tokenizer, warn_of_cut
from ..util.files import sha256
from ..util.machine import provenance
from ..util.parsing import Unreadable
from ..variants import Variant, name_of, own_size

SOURCE = "components"
Modules = Mapping[str, nn.Module | None]
"""transformer, text_encoder and vae, by these names; None for what is not there."""


class ModuleCheckpoint(Checkpoint):
    """The tensors of modules under the names that a checkpoint has for them, as they are: none is copied.

    Args:
        modules: of diffusers and transformers.
        faces: a checkpoint with the face models, where photos are to be identified.

    Raises:
        InputError: a module whose weights are elsewhere, or not the checkpoint's own.
    """

    def __init__(self, modules: Modules, faces: Checkpoint | None):
        super().__init__(faces.path if faces else Path.cwd())
        self.faces = faces
        self.modules = {part: _plain(module) for part, module in modules.items() if module is not None}
        self._states = {part: state_of(part, module) for part, module in self.modules.items()}

    def has_part(self, part: str) -> bool:
        return part in self._states or (part in FACE_FILES and self.faces is not None)

    def has(self, part: str, name: str) -> bool:
        return name in self.names(part)

    def names(self, part: str) -> Collection[str]:
        return self._states[part].keys() if part in self._states else self._face_models.names(part)

    def shape(self, part: str, name: str) -> tuple[int, ...]:
        return tuple(self.tensor(part, name).shape)

    def tensor(self, part: str, name: str, device: torch.device | str = "cpu") -> Tensor:
        if part not in self._states:
            return self._face_models.tensor(part, name, device)
        if name not in self._states[part]:
            raise CheckpointError(f"The {part} has no tensor called {name}; it is not ConsisID's.")
        return self._states[part][name].detach().to(device)

    @property
    def _face_models(self) -> Checkpoint:
        assert self.faces is not None
        return self.faces

    def face_file(self, part: str) -> str:
        return self._face_models.face_file(part)

    def in_place(self, part: str, sources: Sequence[str], device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """Several tensors that are stacked become one, of which the module's are parts from then on; so does one at an
        address that kernels of the CPU would compute differently from."""
        if not all(self.has(part, source) for source in sources) or part not in self._states:
            return None
        found = [self._states[part][source] for source in sources]
        if any(tensor.device != device or tensor.dtype != dtype for tensor in found):
            return None
        if _one_piece(found):
            return _joined(found)
        whole = torch.cat([tensor.detach() for tensor in found])
        for tensor, piece in zip(found, whole.split([len(tensor) for tensor in found]), strict=True):
            tensor.data = piece
        return whole

    @property
    def state(self) -> tuple[tuple[int, int, torch.dtype, torch.device], ...]:
        """What tells whether somebody has put other numbers, or other tensors, in the place of these."""
        return tuple(
            (tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device)
            for state in self._states.values()
            for tensor in state.values()
        )


def state_of(part: str, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module by name, tied ones under each of theirs.

    Raises:
        InputError: a module whose weights are elsewhere, or are not all its own.
    """
    state = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    for name, tensor in state.items():
        if tensor.device.type == "meta":
            raise InputError(
                f"The {part}'s weights are not in memory ({name} is on the meta device): it is offloaded or was never "
                "loaded. Load it without a device map, and choose a memory mode of this pipeline."
            )
        if ".base_layer." in name or not tensor.is_floating_point():
            what = "PEFT's layers" if ".base_layer." in name else f"{tensor.dtype} for {name}"
            raise InputError(
                f"The {part} has {what}; give it as the checkpoint has it, and load LoRAs with load_lora_weights."
            )
    return state


def _plain(module: nn.Module) -> nn.Module:
    """The module that torch.compile wrapped, if it did."""
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, nn.Module)
    return inner


def _one_piece(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors follow each other in memory, from an address that is a multiple of ALIGNMENT."""
    first, place = tensors[0], tensors[0].data_ptr()
    if first.device.type == "cpu" and place % ALIGNMENT:
        return False
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and tensor.is_contiguous() and tensor.data_ptr() == place):
            return False
        place += tensor.nbytes
    return True


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors that are in one piece, as one."""
    first = tensors[0].detach()
    size = (sum(len(tensor) for tensor in tensors), *first.shape[1:])
    return first.as_strided(size, first.stride())


class ComponentTokenizer(Tokenizer):
    """A tokenizer of transformers in the place of the engine's own: a prompt gets the ids that the caller's has for it.

    Args:
        tokenizer: as diffusers calls it.
        max_length: tokens per prompt.
    """

    def __init__(self, tokenizer: Any, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        texts = list(prompts)
        found = self.tokenizer(
            texts, padding="max_length", max_length=self.max_length, truncation=True, add_special_tokens=True,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        for each in self.tokenizer(texts).input_ids:
            if len(each) > self.max_length:
                warn_of_cut(self.max_length, self.tokenizer.decode(each[self.max_length - 1 : -1]))
        ids: Tensor = found.to(torch.int64)
        return ids


class ComponentEngine(ConsisID):
    """An engine over components, operator by operator, for any size; see ModuleCheckpoint.

    Args:
        modules, tokenizer: the components.
        text_length: tokens of a prompt.
        faces: a checkpoint with the face models; None where no photo is to be identified.
        memory: bytes of the device, None for no limit.
    """

    def __init__(
        self, modules: Modules, tokenizer: Any, device: torch.device, dtype: torch.dtype, text_length: int,
        faces: Checkpoint | None = None, memory: int | None = None,
    ):  # fmt: skip
        held = ModuleCheckpoint(modules, faces)
        variant = variant_of(held.modules, text_length, faces)
        name = next((name for name, kind in DTYPES.items() if kind is dtype), None)
        if name is None:
            raise InputError(f"The components are in {dtype}; an engine runs in one of {', '.join(DTYPES)}.")
        spec = BuildSpec(
            variant, variant.height, variant.width, variant.num_frames, name, "eager", device.type, "", SOURCE
        )  # fmt: skip
        self._tokenizer = tokenizer
        super().__init__(Path(SOURCE), Manifest(spec, provenance(device), {}, ""), device, memory, checkpoint=held)

    @property
    def parts(self) -> frozenset[str]:
        return parts_of(self.held.modules, self.held.faces)

    @property
    def held(self) -> ModuleCheckpoint:
        assert isinstance(self.checkpoint, ModuleCheckpoint)
        return self.checkpoint

    @cached_property
    def conditioner(self) -> Conditioner:
        found = Conditioner(self.checkpoint, self.variant, known_faces=self.held.faces is not None)
        length = self.variant.transformer.max_text_seq_length
        found.text_encoder = TextEncoder(ComponentTokenizer(self._tokenizer, length))
        return found

    @cached_property
    def faces(self) -> Faces:
        checkpoint = self.held.faces
        if checkpoint is None:
            raise InputError(
                "There are no face models here, so no photo can be identified; give id_cond and id_vit_hidden."
            )
        files = {checkpoint.face_file(part): checkpoint.face_path(part) for part in FACE_FILES}
        weights: dict[str, WeightsEntry] = {
            name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for name, file in files.items()
        }
        return Faces(self.networks(), checkpoint, replace(self.manifest, weights=weights))


def parts_of(modules: Mapping[str, Any], faces: Checkpoint | None) -> frozenset[str]:
    """The parts of a checkpoint that there are."""
    return frozenset(part for part, module in modules.items() if module is not None) | frozenset(
        FACE_FILES if faces else ()
    )


def variant_of(modules: Mapping[str, nn.Module], text_length: int, faces: Checkpoint | None) -> Variant:
    """The model that components are of; a part that is missing is made up to fit the others, and never called.

    Raises:
        InputError: settings that the networks do not have, or components that do not fit together.
    """
    kinds: dict[str, Any] = {"transformer": TransformerConfig, "text_encoder": TextConfig, "vae": VaeConfig}
    read: dict[str, Any] = {}
    for part, module in modules.items():
        config: Any = module.config
        try:
            read[part] = kinds[part].read(config.to_dict() if hasattr(config, "to_dict") else dict(config))
        except Unreadable as error:
            raise InputError(f"The {part} cannot be used: {error}.") from None
    text = read.get("text_encoder", TextConfig())
    vae = read.get("vae", VaeConfig())
    channels = vae.latent_channels
    transformer = read.get("transformer", TransformerConfig(in_channels=2 * channels, out_channels=channels))
    if "transformer" not in read:
        transformer = replace(transformer, text_embed_dim=text.d_model)
    if "text_encoder" not in read:
        text = replace(text, d_model=transformer.text_embed_dim)
    known = faces.variant if faces is not None else None
    found = Variant(
        name_of(transformer), replace(transformer, max_text_seq_length=text_length), vae, text,
        known.eva if known else EvaConfig(width=transformer.LFE_vit_dim),
        known.retinaface if known else "resnet50",
        *own_size(transformer, vae),
    )  # fmt: skip
    try:
        if set(read) == set(PARTS):
            found.check(faces=faces is not None)
    except Unreadable as error:
        raise InputError(f"The components do not fit together: {error}.") from None
    return found
