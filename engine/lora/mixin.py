"""The LoRAs of an open engine, with the methods and names of diffusers' loaders."""

import warnings
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from os import PathLike
from threading import RLock
from typing import TYPE_CHECKING, Any

from ..backends import holds_weights
from ..checkpoint.reading import Checkpoint
from ..errors import BackendError, InputError, shown
from .weights import PART, Active, Lora, reads

if TYPE_CHECKING:
    from ..manifest import Manifest


Weight = float | Mapping[str, float | Mapping[str, float] | None] | None


class Adapters:
    """What is loaded and what of it is active. A change counts from the next video on.

    Fused or not, a LoRA is added to the weights before the loop, which has no operation more for it.
    """

    checkpoint: Checkpoint
    manifest: "Manifest"

    def __init__(self) -> None:
        self._loaded: dict[str, Lora] = {}
        self._weights: dict[str, float] = {}  # of those that are active
        self._by_module: dict[str, Lora] = {}  # those that set_adapters gave weights by module, with these in them
        self._fused: list[tuple[Lora, str, Lora, float]] = []  # as loaded; name, as weighted, and weight
        self._enabled = True
        self._changing = RLock()  # threads change and read all of the above

    def adopt(self, other: "Adapters") -> None:
        """Load what another engine of the same model has loaded, as it is there."""
        with self._changing, other._changing:
            self._loaded, self._weights = dict(other._loaded), dict(other._weights)
            self._by_module, self._fused = dict(other._by_module), list(other._fused)
            self._enabled = other._enabled

    @property
    def loras(self) -> Active:
        """What the next video is made with."""
        return self.scaled_loras(1.0)

    def scaled_loras(self, scale: float) -> Active:
        """What the next video is made with, those that are not fused at `scale` times their weight."""
        with self._changing:
            fused = [(lora, weight) for _, _, lora, weight in self._fused]
            active = [(name, weight) for name, weight in self._weights.items() if self._enabled]
            added = [
                (self._as_weighted(name), weight * scale)
                for name, weight in active
                if not self._is_fused(self._loaded[name])
            ]
            return (*fused, *added)

    def _as_weighted(self, name: str) -> Lora:
        return self._by_module.get(name, self._loaded[name])

    def _is_fused(self, lora: Lora) -> bool:
        return any(lora is other for other, _, _, _ in self._fused)

    def load_lora_weights(
        self,
        source: str | PathLike[str] | Mapping[str, Any],
        adapter_name: str | None = None,
        *,
        hotswap: bool = False,
        **where: Any,
    ) -> None:
        """Load a LoRA of the transformer and make it the active one, at weight 1.

        Args:
            source: a .safetensors file, a folder or hub id with one, or its tensors or arrays by name.
            adapter_name: default default_0, default_1 and so on.
            hotswap: put it in the place of the loaded one of that name; it is active, at weight 1, if that was.
            where: weight_name and subfolder; revision, token, cache_dir and the like, as huggingface_hub takes them;
                diffusers' low_cpu_mem_usage changes nothing.

        Raises:
            InputError: no LoRA, one of another model, or a name that is taken.
            BackendError: an engine folder that takes no LoRA.
        """
        if not isinstance(adapter_name, str | None):
            raise InputError(f"adapter_name={shown(adapter_name)} is no text.")
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
        with self._changing:
            self._loaded[adapter_name] = lora
            self._by_module.pop(adapter_name, None)
            if not hotswap:
                self._weights = {adapter_name: 1.0}
            elif adapter_name in self._weights:
                self._weights[adapter_name] = 1.0

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: Weight | Sequence[Weight] = None
    ) -> None:
        """Make these LoRAs the active ones, with one weight for all or one for each (default 1).

        Args:
            adapter_weights: numbers, or as diffusers takes them {"transformer": number}, or {"transformer": {part of
                a module's name: number}}: for a module the first part that its name contains counts, and 1 without any.
                Weights of other components are left out, with a warning.

        Raises:
            InputError: a name that is not loaded, another number of weights, or something that is no weight.
        """
        names = self._known(adapter_names)
        one_each = isinstance(adapter_weights, list | tuple)
        weights = list(adapter_weights) if one_each else [adapter_weights] * len(names)  # type: ignore[arg-type]
        if len(weights) != len(names):
            raise InputError(
                f"{len(weights)} weights were given for {len(names)} LoRAs; give a number for all, or a list with one "
                "each."
            )
        found = {name: _weight(weight) for name, weight in zip(names, weights, strict=True)}
        with self._changing:
            self._known(names)
            self._weights = {name: 1.0 if isinstance(weight, dict) else weight for name, weight in found.items()}
            self._by_module = {
                name: self._loaded[name].weighted(weight) for name, weight in found.items() if isinstance(weight, dict)
            }

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
        with self._changing:
            for name in self._known(adapter_names):
                del self._loaded[name]
                self._weights.pop(name, None)
                self._by_module.pop(name, None)
            if self._loaded and not self._weights:
                self._weights = {next(iter(self._loaded)): 1.0}

    def unload_lora_weights(self) -> None:
        """Forget all of them; what was fused stays."""
        with self._changing:
            self._loaded, self._weights, self._by_module, self._enabled = {}, {}, {}, True

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
        scale = _number(lora_scale, "lora_scale")
        with self._changing:
            names = self.get_active_adapters() if adapter_names is None else self._known(adapter_names)
            for name in names:
                if not self._is_fused(self._loaded[name]):
                    weight = scale * self._weights.get(name, 1.0)
                    self._fused.append((self._loaded[name], name, self._as_weighted(name), weight))

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
        return {name for _, name, _, _ in self._fused}

    def _check_takes(self, lora: Lora) -> None:
        spec, changed = self.manifest.spec, frozenset(lora.changes)
        if spec.layers_per_shard and "refit" in spec.flags:
            return
        held = {name: entry for name, entry in self.manifest.graphs.items() if holds_weights(entry.backend)}
        for name, graph in spec.every_graph().items() if held else ():
            if name in held and reads(graph, list(graph.weights), 0, changed):
                raise BackendError(
                    f"This engine folder does not take the LoRA: {held[name].backend} holds the weights of {name}, and "
                    "it was not built refittable; build the folder on this GPU with --backend tensorrt --refit, or "
                    "with --backend inductor."
                )

    def _known(self, names: Any) -> list[str]:
        found = list(names) if isinstance(names, list | tuple | set | frozenset) else [names]
        for name in found:
            if not isinstance(name, str):
                raise InputError(f"{shown(name)} is no name of a LoRA; give a name, or a list of names.")
        unknown = [name for name in found if name not in self._loaded]
        if unknown:
            loaded = ", ".join(self._loaded) or "none"
            raise InputError(f"No LoRA called {', '.join(unknown)} is loaded, loaded is {loaded}; load it first.")
        return found


def _check_components(components: Sequence[str]) -> None:
    given = list(components) if isinstance(components, list | tuple) else [components]
    if not (len(given) == 1 and isinstance(given[0], str) and given[0] == PART):
        raise InputError(f"components={shown(components)} have no LoRAs; it is the {PART} that has.")


def _weight(given: Any) -> float | dict[str, float]:
    """A weight for all modules, or weights by parts of their names."""
    if isinstance(given, Mapping):
        others = [component for component in given if component != PART]
        if others:
            named = ", ".join(shown(component) for component in others)
            warnings.warn(f"adapter_weights has {named}; only the {PART} has LoRAs, they are left out.", stacklevel=3)
        given = given.get(PART)
    if isinstance(given, Mapping):
        if not all(isinstance(part, str) for part in given):
            raise InputError(f"adapter_weights={shown(dict(given))} has names that are no text.")
        return {part: _number(weight) for part, weight in given.items()}
    return _number(given)


def _number(weight: Any, name: str = "adapter_weights") -> float:
    try:
        value = 1.0 if weight is None else float(weight)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        value = nan
    if not isfinite(value) or isinstance(weight, str | bytes):
        raise InputError(f'{name}={shown(weight)} is no weight; give a number, or {{"{PART}": number}}.')
    return value
