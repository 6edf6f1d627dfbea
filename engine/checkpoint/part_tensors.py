"""The tensors of a part of a checkpoint, by name: of its safetensors files, or of a face model's state."""

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..util.parsing import Unreadable, refuse_pointer, shorten
from .weight_files import FLOATS, WeightFiles, read_index


class PartTensors(Protocol):
    """Tensors that are read when they are asked for."""

    def names(self) -> Collection[str]:
        """The names of all of them."""

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """A tensor's shape and dtype, as safetensors calls it, without reading it."""

    def tensor(self, name: str) -> Tensor:
        """A tensor on the CPU, mapped where its file allows."""


class StoredTensors:
    """Of the safetensors files of a part.

    Args:
        choice: which they are, see weight_files.choose_weights.
        file: the path of a file of the part's folder; raises CheckpointError where it is missing.

    Raises:
        CheckpointError: a damaged index, or a file that it names is missing.
    """

    def __init__(self, choice: WeightFiles, file: Callable[[str], Path]):
        if choice.file is not None:
            path = file(choice.file)
            self.places = dict.fromkeys(self._open(path).keys(), path)
            return
        index = file(str(choice.index))
        try:
            named = read_index(index)
        except Unreadable as error:
            raise CheckpointError(f"{index} cannot be used ({error}); download it again.") from None
        if not named:
            raise CheckpointError(f"{index} is an index that names no tensor; download it again.")
        shards = {name: file(name) for name in sorted(set(named.values()))}
        self.places = {tensor: shards[name] for tensor, name in named.items()}

    @cached_property
    def _handles(self) -> dict[Path, Any]:
        return {}

    def _open(self, file: Path) -> Any:
        if file not in self._handles:
            try:
                with file.open("rb") as beginning:
                    refuse_pointer(beginning.read(64))
                self._handles[file] = safe_open(file, framework="pt", device="cpu")
            except (OSError, SafetensorError, Unreadable) as error:
                raise CheckpointError(f"{file} is missing or damaged ({shorten(error)}); download it again.") from None
        return self._handles[file]

    def names(self) -> Collection[str]:
        return self.places.keys()

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        file = self.places[name]
        try:
            piece = self._open(file).get_slice(name)
        except SafetensorError:
            raise CheckpointError(f"{file} lacks {name}, which its index promises; download it again.") from None
        return tuple(piece.get_shape()), piece.get_dtype()

    def tensor(self, name: str) -> Tensor:
        file = self.places[name]
        try:
            return self._open(file).get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{name} cannot be read from {file} ({shorten(error)}); download it again.") from None


class StateTensors:
    """Of a state that is in memory, or mapped as a whole."""

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state

    def names(self) -> Collection[str]:
        return self.state.keys()

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        tensor = self.state[name]
        called = {dtype: name for name, dtype in FLOATS.items()}
        return tuple(tensor.shape), called.get(str(tensor.dtype), str(tensor.dtype))

    def tensor(self, name: str) -> Tensor:
        return self.state[name]
