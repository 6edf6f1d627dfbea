"""Components of a pipeline that was made from an engine folder: settings at once, the module when it is needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import torch

from ..api import ConsisID
from ..checkpoint.weight_files import has_variant
from ..errors import InputError


@dataclass(frozen=True)
class Kind:
    """The class of a component: its library, as model_index.json names it, and its name there."""

    library: str
    name: str

    def load(self) -> Any:
        """The class."""
        return getattr(import_module(self.library), self.name)


# Options of from_pretrained that say where files come from.
PLACES = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
KINDS: Mapping[str, Kind] = {
    "transformer": Kind("diffusers", "ConsisIDTransformer3DModel"),
    "vae": Kind("diffusers", "AutoencoderKLCogVideoX"),
    "text_encoder": Kind("transformers", "T5EncoderModel"),
    "tokenizer": Kind("transformers", "T5Tokenizer"),
}


def own_transformer(name: str, options: Mapping[str, Any]) -> Any:
    """The transformer of a checkpoint's folder or hub id where diffusers has no class for it, else None.

    Args:
        options: of from_pretrained; those that say which files, from where and in which dtype are kept to.
    """
    import diffusers

    from ..checkpoint import transformer_module

    given = {key: options[key] for key in PLACES if key in options}
    config = diffusers.ConsisIDTransformer3DModel.load_config(name, subfolder="transformer", **given)
    if not transformer_module.needs_own_module(config):
        return None
    asked = options.get("dtype", options.get("torch_dtype"))
    if isinstance(asked, Mapping):
        asked = asked.get("transformer", asked.get("default"))
    given |= {key: options[key] for key in ("variant", "use_safetensors") if key in options}
    return transformer_module.ConsisIDTransformer3DModel.from_pretrained(
        name, subfolder="transformer", torch_dtype=asked, **given
    )


class EngineComponent:
    """A component of an engine. What it has of its own answers at once; anything else is asked of the real module,
    which is read from the checkpoint then and is no part of the engine: changing it changes no video.

    Attributes:
        engine: whose it is.
        use_tiling, use_slicing: as diffusers' vae has them; tiling lets a plan of the memory decode in tiles.
    """

    def __init__(self, engine: ConsisID, part: str):
        self.engine, self.part = engine, part
        self.use_tiling = self.use_slicing = False

    @property
    def kind(self) -> Kind:
        return KINDS[self.part]

    @cached_property
    def config(self) -> Any:
        """config.json of the checkpoint, by attribute and by key."""
        from diffusers.configuration_utils import FrozenDict

        return FrozenDict(self.engine.checkpoint.config(f"{self.part}/config.json"))

    @property
    def dtype(self) -> torch.dtype:
        return self.engine.dtype

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @cached_property
    def module(self) -> Any:
        """The real component, on the CPU.

        Raises:
            InputError: the weights are in no checkpoint.
        """
        folder = self.engine.checkpoint.path / self.part
        if not folder.is_dir() or not any(folder.iterdir()):
            raise InputError(f"The engine of {self.engine.folder} has random weights and no {self.part} to load.")
        options: dict[str, Any] = {}
        if self.part != "tokenizer":
            options = {"torch_dtype": self.engine.dtype}
            weights = self.engine.checkpoint.weights
            if weights and has_variant([file.name for file in folder.iterdir()], weights):
                options["variant"] = weights
        if self.part == "transformer":
            own = own_transformer(str(folder.parent), options)
            if own is not None:
                return own
        return self.kind.load().from_pretrained(folder, **options)

    def enable_tiling(self, *args: Any, **kwargs: Any) -> None:
        """From now on a plan of the memory may decode in tiles; their size is the plan's."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Whole frames are decoded."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Videos are decoded one by one; they are anyway."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Videos are decoded one by one all the same."""
        self.use_slicing = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "engine" not in vars(self):
            raise AttributeError(name)
        return getattr(self.module, name)

    def __repr__(self) -> str:
        return f"{self.kind.name} of {self.engine.folder}"
