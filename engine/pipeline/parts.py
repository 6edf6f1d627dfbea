"""The components of a pipeline, and the engine that runs them."""

import threading
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

import torch

from ..api import ConsisID
from ..checkpoint.reading import PARTS, Checkpoint
from ..errors import InputError
from ..lora.mixin import Adapters
from ..manifest import FILE
from ..memory.costs import video_costs
from ..run.run import Run
from ..shapes import VideoShape
from ..util.machine import provenance
from ..variants import Variant
from .components import ComponentEngine, Modules, parts_of, variant_of
from .loaded import Loaded, Origin
from .offload import Savers
from .proxies import KINDS, EngineComponent, own_transformer

TEXT_LENGTH = 226  # the default of max_sequence_length: what diffusers' signature has
# Engines over the same components, one for each length of text that a script uses in turn. They hold the same weights.
# What each has of its own: features of faces and prompts, and where blocks stream pinned copies of them, which are made
# as far as the free memory of the host goes.
KEPT = 3
FIXED = "The components of a compiled engine are its graphs"


class Parts(Loaded):
    """Components that are real modules, or those of an engine (proxies.py), never both."""

    savers: Savers
    _granted: int | None
    _latest: Run | None
    tokenizer: Any
    text_encoder: Any
    vae: Any
    transformer: Any
    scheduler: Any

    def __init__(self) -> None:
        super().__init__()
        self._making = threading.RLock()
        self._made: dict[tuple[int, bool], tuple[Any, ComponentEngine]] = {}
        self._last: Adapters | None = None  # the engine of the latest call, or its LoRAs

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, EngineComponent):
            object.__setattr__(self, name, value)
            self.register_to_config(**{name: (value.kind.library, value.kind.name)})  # type: ignore[attr-defined]
        elif name in KINDS and isinstance(vars(self).get(name), EngineComponent):
            raise InputError(f"{FIXED}, and its {name} cannot be put in another's place; make the engine anew.")
        else:
            super().__setattr__(name, value)

    def register_modules(self, **modules: Any) -> None:
        """Make components known by name."""
        for name, module in modules.items():
            if isinstance(module, EngineComponent):
                setattr(self, name, module)
                continue
            super().register_modules(**{name: module})  # type: ignore[misc]
            if name in KINDS and type(module).__name__ == KINDS[name].name:
                # A checkpoint of a transformer that diffusers has no class for names diffusers' all the same, as the
                # authors' does.
                self.register_to_config(**{name: (KINDS[name].library, KINDS[name].name)})  # type: ignore[attr-defined]

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[type, ...]]:
        import diffusers

        types = {name: (kind.load(),) for name, kind in KINDS.items()}
        return types | {"scheduler": (diffusers.SchedulerMixin,)}

    @property
    def opened(self) -> ConsisID | None:
        """The engine folder that the components are of; None where they are modules in memory."""
        for name in KINDS:
            part = getattr(self, name, None)
            if isinstance(part, EngineComponent):
                return part.engine
        return None

    @property
    def _modules(self) -> Modules:
        return {part: getattr(self, part) for part in PARTS}

    @property
    def _variant(self) -> Variant:
        opened = self.opened
        if opened is not None:
            return opened.variant
        return variant_of({k: v for k, v in self._modules.items() if v is not None}, TEXT_LENGTH, None)

    @property
    def engine(self) -> ConsisID:
        """What runs the components."""
        return self.engine_for(TEXT_LENGTH)

    def engine_for(self, text_length: int, photos: bool = False) -> ConsisID:
        """The engine for prompts of so many tokens, with the present scheduler and LoRAs.

        Args:
            photos: it has to identify photos.

        Raises:
            InputError: a length that the model does not take, or no face models for a photo.
        """
        with self._making:
            engine = self.opened or self._of_modules(text_length, photos)
            if self.opened is not None:
                _check_length(text_length, engine.variant.transformer.max_text_seq_length)
            engine.scheduler = self.scheduler
            if self._last is not None and self._last is not engine:
                engine.adopt(self._last)
            self._last = engine
            return engine

    def _of_modules(self, text_length: int, photos: bool) -> ComponentEngine:
        length = self._length(text_length)
        key, savers = (length, photos), self.savers
        modules, (device, dtype) = self._modules, self._place()
        same = device, dtype, savers.offload is None, id(self.tokenizer), tuple(map(id, modules.values()))
        # An engine over other components, or over other numbers in them, would only hold what is gone.
        self._made = {k: known for k, known in self._made.items() if known[0] == (same, known[1].held.state)}
        if key in self._made:
            self._made[key] = found = self._made.pop(key)  # the latest last
            return found[1]
        for oldest in list(self._made)[: max(0, len(self._made) + 1 - KEPT)]:
            del self._made[oldest]
        faces = self._face_models() if photos else None
        variant = variant_of({k: v for k, v in modules.items() if v is not None}, length, faces)
        shape = VideoShape.of(variant, None, None, None)
        costs = partial(
            video_costs, variant, shape, dtype, device=device.type, parts=parts_of(modules, faces)
        )  # fmt: skip
        memory = savers.budget(device, provenance(device).get("gpu", ""), costs)
        engine = ComponentEngine(modules, self.tokenizer, device, dtype, length, faces, memory)
        self._made[key] = (same, engine.held.state), engine
        return engine

    def _length(self, asked: int) -> int:
        """The tokens of text for what a caller asked for: any number where no positions are learned, else the model's;
        the signature's default stands for that."""
        if self.transformer is None:
            return asked
        config = self.transformer.config
        own = int(config.max_text_seq_length)
        fixed = config.get("use_learned_positional_embeddings") or not config.get("use_rotary_positional_embeddings")
        if fixed:
            _check_length(asked, own)
        return own if fixed else asked

    def _place(self) -> tuple[torch.device, torch.dtype]:
        """Where and in what the modules compute."""
        for part in ("transformer", "text_encoder", "vae"):
            module = getattr(self, part)
            if module is not None:
                return self.savers.device or module.device, module.dtype
        raise InputError("The pipeline has no components that compute.")

    def _face_models(self) -> Checkpoint:
        if self._origin is None:
            raise InputError(
                "A photo cannot be identified without face models, which components in memory do not have; give "
                "id_cond and id_vit_hidden, or make the pipeline by from_pretrained."
            )
        return Checkpoint.find(self._origin.name)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any) -> Self:
        """A pipeline from a checkpoint's folder or hub id, with the options of diffusers; or from an engine folder.

        Args:
            kwargs: of an engine folder: device and memory, as ConsisID.open takes them, and scheduler. Its dtype is
                what it was built in.
        """
        folder = Path(fspath(pretrained_model_name_or_path))
        if (folder / FILE).is_file():
            engine = ConsisID.open(folder, device=kwargs.get("device"), memory=kwargs.get("memory"))
            return cls._of_engine(engine, kwargs.get("scheduler"))
        if "transformer" not in kwargs:
            own = own_transformer(fspath(pretrained_model_name_or_path), kwargs)
            kwargs |= {} if own is None else {"transformer": own}
        made = super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        made._origin = Origin(fspath(pretrained_model_name_or_path), kwargs.get("variant"), made.state)
        found: Self = made
        return found

    @classmethod
    def _of_engine(cls, engine: ConsisID, scheduler: Any = None) -> Self:
        parts = {name: EngineComponent(engine, name) for name in KINDS}
        make: Any = cls
        made: Self = make(**parts, scheduler=engine.scheduler if scheduler is None else scheduler)
        made._granted = engine.memory
        return made

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Self:
        """A pipeline with the components of another, which are held once. Unlike in diffusers their dtype stays as it
        is where none is asked for."""
        opened = getattr(pipeline, "opened", None)
        made: Any
        if opened is not None:
            made = cls._of_engine(opened, kwargs.get("scheduler", pipeline.scheduler))
        else:
            if not {"dtype", "torch_dtype"} & kwargs.keys():
                kwargs["torch_dtype"] = pipeline.dtype
            made = super().from_pipe(pipeline, **kwargs)  # type: ignore[misc]
            made._origin = getattr(pipeline, "_origin", None)
        found: Self = made
        return found

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to a device, into a dtype, or both, as diffusers does; offloading ends. An engine folder is opened again
        on another device, and stays in its dtype.

        Raises:
            InputError: another dtype than an engine folder's; EngineError: a device that it was not built for.
        """
        opened = self.opened
        given = [*args, kwargs.get("device"), kwargs.get("dtype")]
        dtype = next((each for each in given if isinstance(each, torch.dtype)), None)
        device = next((each for each in given if isinstance(each, str | torch.device)), None)
        if device is not None:
            self.remove_all_hooks()  # type: ignore[attr-defined]
        if opened is None:
            with self._moving():
                super().to(*args, **kwargs)  # type: ignore[misc]
            return self
        if dtype is not None and dtype is not opened.dtype:
            raise InputError(f"{opened.folder} was built in {opened.dtype}; build another folder for {dtype}.")
        if device is not None and not _same_device(torch.device(device), opened.device):
            self._become(ConsisID.open(opened.folder, device=device, memory=opened.memory), self.savers.tiling)
        return self

    def _to_host(self) -> None:
        if self.opened is None:
            with self._moving():
                super().to("cpu", silence_dtype_warnings=True)  # type: ignore[misc]

    def _become(self, engine: ConsisID, tiling: bool) -> None:
        """Go on with an engine folder, with the scheduler and the LoRAs of before.

        Args:
            tiling: vae.enable_tiling() counts on.
        """
        engine.scheduler = self.scheduler
        if self._last is not None:
            engine.adopt(self._last)
        self._last, self._made, self._granted = engine, {}, engine.memory
        for name in KINDS:
            object.__setattr__(self, name, None)
            setattr(self, name, EngineComponent(engine, name))
        self.vae.use_tiling = tiling

    @property
    def device(self) -> torch.device:
        """Where the components are."""
        opened = self.opened
        found: torch.device = super().device if opened is None else opened.device  # type: ignore[misc]
        return found

    @property
    def dtype(self) -> torch.dtype:
        """What they are in."""
        opened = self.opened
        found: torch.dtype = super().dtype if opened is None else opened.dtype
        return found

    @property
    def _execution_device(self) -> torch.device:
        return self.savers.device or self.device

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """Write the components as a checkpoint; those of an engine folder are read from its checkpoint for that."""
        opened = self.opened
        if opened is None:
            super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
            return
        make: Any = type(self)
        make(
            **{name: getattr(self, name).module for name in KINDS}, scheduler=self.scheduler
        ).save_pretrained(save_directory, **kwargs)  # fmt: skip


def _check_length(asked: int, own: int) -> None:
    if asked not in (own, TEXT_LENGTH):
        raise InputError(f"max_sequence_length={asked}: this model takes {own} tokens of text; leave it out.")


def _same_device(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.index is None or one.index == other.index)
