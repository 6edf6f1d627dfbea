"""Modules that were loaded from a checkpoint: whether they still are what it has, and how they are read again."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.weight_files import has_variant
from ..errors import InputError
from .components import Modules, state_of


@dataclass(frozen=True)
class Origin:
    """Where components were loaded from: folder or hub id, diffusers' `variant`, and Loaded.state then."""

    name: str
    variant: str | None
    state: Any


class Loaded:
    """Modules, and the checkpoint that they are of."""

    _origin: Origin | None = None
    dtype: Any

    @property
    def _modules(self) -> Modules:
        raise NotImplementedError

    @property
    def state(self) -> tuple[tuple[int, int], ...]:
        """Changes when somebody changes a weight."""
        tensors = [x for k, v in self._modules.items() if v is not None for x in state_of(k, v).values()]
        return tuple((id(x), x._version) for x in tensors)

    @property
    def _unchanged(self) -> Origin | None:
        """Where the weights are from, if nobody has changed one since."""
        return self._origin if self._origin is not None and self._origin.state == self.state else None

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Inside the block modules go to another device; weights that are a checkpoint's stay known as that."""
        try:
            origin = self._unchanged
        except InputError:  # of modules that cannot be run either
            origin = None
        dtype = self.dtype
        yield
        if origin is not None and self.dtype is dtype:
            self._origin = replace(origin, state=self.state)


@dataclass(frozen=True)
class Released:
    """A module that may be gone, and how it is read again.

    Attributes:
        module: a weak reference.
        kind: its class.
        dtypes: of each of its tensors.
        variant: as in Origin.
    """

    module: Any
    kind: Any
    device: Any
    dtypes: Mapping[str, torch.dtype]
    variant: str | None

    @classmethod
    def of(cls, module: Any, variant: str | None) -> "Released":
        plain = getattr(module, "_orig_mod", module)  # where torch.compile wrapped it
        dtypes = {name: tensor.dtype for name, tensor in state_of("", plain).items()}
        return cls(weakref.ref(module), type(plain), plain.device, dtypes, variant)

    def back(self, folder: Path) -> Any:
        """The module: itself where somebody holds it, else one with the same weights, of a checkpoint's folder."""
        found = self.module()
        if found is not None:
            return found
        kinds, names = set(self.dtypes.values()), [file.name for file in folder.iterdir()]
        made = self.kind.from_pretrained(
            folder, torch_dtype=kinds.pop() if len(kinds) == 1 else None,
            variant=self.variant if self.variant and has_variant(names, self.variant) else None,
        )  # fmt: skip
        for name, tensor in state_of("", made).items():
            tensor.data = tensor.data.to(self.dtypes[name])
        return made.to(self.device)
