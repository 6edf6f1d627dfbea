"""diffusers' methods for LoRAs, which the engine of a pipeline has under the same names."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from ..api import ConsisID
from ..errors import InputError


class EngineLoras:
    """Forwards to `engine`; see lora/mixin.py for what each does."""

    @property
    def engine(self) -> ConsisID:
        """What runs the components."""
        raise NotImplementedError

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: str | PathLike[str] | Mapping[str, Any],
        adapter_name: str | None = None, hotswap: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Load a LoRA of the transformer and make it the active one, at weight 1."""
        self.engine.load_lora_weights(pretrained_model_name_or_path_or_dict, adapter_name, hotswap=hotswap, **kwargs)

    def unload_lora_weights(self) -> None:
        """Forget all LoRAs; what was fused stays."""
        self.engine.unload_lora_weights()

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """Make these LoRAs the active ones, with these weights."""
        self.engine.set_adapters(adapter_names, adapter_weights)

    def get_active_adapters(self) -> list[str]:
        """Names of the active LoRAs."""
        return self.engine.get_active_adapters()

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all that are loaded, by component."""
        return self.engine.get_list_adapters()

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget these LoRAs."""
        self.engine.delete_adapters(adapter_names)

    def disable_lora(self) -> None:
        """Make videos without LoRAs that are not fused."""
        self.engine.disable_lora()

    def enable_lora(self) -> None:
        """Make videos with the active LoRAs again."""
        self.engine.enable_lora()

    def fuse_lora(
        self, components: Sequence[str] = ("transformer",), lora_scale: float = 1.0, safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Make LoRAs a part of the model until unfuse_lora()."""
        self.engine.fuse_lora(components, lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self, components: Sequence[str] = ("transformer",), **kwargs: Any) -> None:
        """Undo fuse_lora()."""
        self.engine.unfuse_lora(components)

    @property
    def num_fused_loras(self) -> int:
        """How many are fused."""
        return self.engine.num_fused_loras

    @property
    def fused_loras(self) -> set[str]:
        """Names of those that are fused."""
        return self.engine.fused_loras

    def set_lora_device(self, adapter_names: Sequence[str], device: Any) -> None:
        """Nothing moves: LoRAs are in host memory, and what they make of the weights is where these are."""

    def enable_lora_hotswap(self, **kwargs: Any) -> None:
        """Nothing has to be prepared: load_lora_weights(..., hotswap=True) takes a LoRA of any rank."""

    @classmethod
    def load_lora_into_transformer(cls, *args: Any, **kwargs: Any) -> None:
        """Refused: diffusers puts PEFT's layers into the module here, and an engine has none.

        Raises:
            InputError: always.
        """
        raise InputError("load_lora_into_transformer puts PEFT's layers into a module; use load_lora_weights.")
