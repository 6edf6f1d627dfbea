"""The LoRAs of an open engine, with the methods and names of diffusers' loaders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .backends import HOLDS_WEIGHTS
from .checkpoint import Checkpoint
from .errors import BackendError, InputError
from .graphs import weight_shapes
from .lora import PART, Active, Lora
from .weight_store import reads

if TYPE_CHECKING:
    from .manifest import Manifest


Weight = float | Mapping[str, float] | None


class Adapters:
    """What is loaded and what of it is active. A change counts from the next video on.

    Fused or not, a LoRA is added to the weights before the loop, which has no operation more for it.
    """

    checkpoint: Checkpoint
    manifest: "Manifest"

    def __init__(self) -> None:
        self._loaded: dict[str, Lora] = {}
        self._weights: dict[str, float] = {}  # of those that are active
        self._fused: list[tuple[str, Lora, float]] = []
        self._enabled = True

    @property
    def loras(self) -> Active:
        """What the next video is made with."""
        fused = [(lora, weight) for _, lora, weight in self._fused]
        active = [(self._loaded[name], weight) for name, weight in self._weights.items() if self._enabled]
        return (*fused, *((lora, weight) for lora, weight in active if not self._is_fused(lora)))

    def _is_fused(self, lora: Lora) -> bool:
        return any(lora is other for _, other, _ in self._fused)

    def load_lora_weights(
        self,
        source: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        *,
        hotswap: bool = False,
        **where: Any,
    ) -> None:
        """Load a LoRA of the transformer and make it the active one, at weight 1.

        Args:
            source: a .safetensors file, a folder or hub id with one, or its tensors by name.
            adapter_name: default default_0, default_1 and so on.
            hotswap: put it in the place of the loaded one of that name; it is active, at weight 1, if that was.
            where: weight_name and subfolder; revision, token, cache_dir and the like, as huggingface_hub takes them.

        Raises:
            InputError: no LoRA, one of another model, or a name that is taken.
            BackendError: an engine folder that takes no LoRA.
        """
        if adapter_name is None:
            adapter_name = next(name for i in range(len(self._loaded) + 1)
                                if (name := f"default_{i}") not in self._loaded)  # fmt: skip
        if (adapter_name in self._loaded) != hotswap:
            state = "is loaded already; give another adapter_name, or hotswap=True" if not hotswap else "is not loaded"
            raise InputError(f"A LoRA called {adapter_name} {state}.")
        if hotswap and self._is_fused(self._loaded[adapter_name]):
            raise InputError(f"The LoRA {adapter_name} is fused; call unfuse_lora() before it is swapped.")
        lora = Lora.read(source, self.checkpoint, **where)
        self._check_takes(lora)
        self._loaded[adapter_name] = lora
        if not hotswap:
            self._weights = {adapter_name: 1.0}
        elif adapter_name in self._weights:
            self._weights[adapter_name] = 1.0

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: Weight | Sequence[Weight] = None
    ) -> None:
        """Make these LoRAs the active ones, with one weight for all or one for each (default 1).

        Args:
            adapter_weights: numbers, or {"transformer": number} as diffusers takes them.

        Raises:
            InputError: a name that is not loaded, another number of weights, or something that is no weight.
        """
        names = self._known(adapter_names)
        weights = adapter_weights if isinstance(adapter_weights, Sequence) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise InputError(
                f"{len(weights)} weights were given for {len(names)} LoRAs; give a number for all, or a list with one "
                "each."
            )
        self._weights = {name: _number(weight) for name, weight in zip(names, weights, strict=True)}

    def get_active_adapters(self) -> list[str]:
        """Names of the active LoRAs."""
        return list(self._weights)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all that are loaded, by component."""
        return {PART: list(self._loaded)} if self._loaded else {}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget LoRAs. Where none of the others is active, the first of them is then, as in PEFT.

        Raises:
            InputError: a name that is not loaded.
        """
        for name in self._known(adapter_names):
            del self._loaded[name]
            self._weights.pop(name, None)
        if self._loaded and not self._weights:
            self._weights = {next(iter(self._loaded)): 1.0}

    def unload_lora_weights(self) -> None:
        """Forget all of them; what was fused stays."""
        self._loaded, self._weights, self._enabled = {}, {}, True

    def disable_lora(self) -> None:
        """Make videos without the loaded LoRAs that are not fused, until enable_lora() or until they are unloaded."""
        self._enabled = not self._loaded

    def enable_lora(self) -> None:
        """Make videos with the active LoRAs again."""
        self._enabled = True

    def fuse_lora(
        self,
        components: Sequence[str] = (PART,),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Make the active LoRAs, or those that are named, a part of the model at lora_scale times their weight: they
        stay when LoRAs are unloaded, until unfuse_lora().

        Args:
            safe_fusing: accepted as diffusers does; a video whose latents are not finite ends with an error anyway.

        Raises:
            InputError: a component without LoRAs, or a name that is not loaded.
        """
        _check_components(components)
        names = self.get_active_adapters() if adapter_names is None else self._known(adapter_names)
        for name in names:
            if not self._is_fused(self._loaded[name]):
                self._fused.append((name, self._loaded[name], lora_scale * self._weights.get(name, 1.0)))

    def unfuse_lora(self, components: Sequence[str] = (PART,)) -> None:
        """Undo fuse_lora().

        Raises:
            InputError: a component without LoRAs.
        """
        _check_components(components)
        self._fused = []

    @property
    def num_fused_loras(self) -> int:
        """How many are fused."""
        return len(self._fused)

    @property
    def fused_loras(self) -> set[str]:
        """Names of those that are fused."""
        return {name for name, _, _ in self._fused}

    def _check_takes(self, lora: Lora) -> None:
        spec, changed = self.manifest.spec, frozenset(lora.changes)
        if spec.layers_per_shard and "refit" in spec.flags:
            return
        held = {name: entry for name, entry in self.manifest.graphs.items() if entry.backend in HOLDS_WEIGHTS}
        for name, graph in spec.graphs().items() if held else ():
            if name in held and reads(graph, list(weight_shapes(graph.module())), 0, changed):
                raise BackendError(
                    f"This engine folder does not take the LoRA: {held[name].backend} holds the weights of {name}, and "
                    "it was not built refittable; build the folder on this GPU with --backend tensorrt --refit, or "
                    "with --backend inductor."
                )

    def _known(self, names: str | Sequence[str]) -> list[str]:
        found = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in found if name not in self._loaded]
        if unknown:
            loaded = ", ".join(self._loaded) or "none"
            raise InputError(f"No LoRA called {', '.join(unknown)} is loaded, loaded is {loaded}; load it first.")
        return found


def _check_components(components: Sequence[str]) -> None:
    if list(components) != [PART]:
        raise InputError(f"components={list(components)} have no LoRAs; it is the {PART} that has.")


def _number(weight: Any) -> float:
    value = weight.get(PART) if isinstance(weight, Mapping) else weight
    try:
        return 1.0 if value is None else float(value)
    except (TypeError, ValueError):
        raise InputError(f'adapter_weights={weight!r} is no weight; give a number, or {{"{PART}": number}}.') from None
