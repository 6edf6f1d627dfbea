"""What comes from a file is checked where it comes in: JSON of a bounded size and depth, validated against a type.

Errors are `Unreadable` with one short reason; who asked for the file adds its name and what to do.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ..errors import one_line

MIB = 2**20
REASON = 150  # characters of a reason: a message with a path and a remedy stays below 400
POINTER = b"version https://git-lfs"  # how the stand-in that git leaves without git-lfs begins

# Whole numbers of configurations. The bounds are far above every known model and far below what exhausts a machine.
Size = Annotated[int, Ge(1), Le(2**18)]
Count = Annotated[int, Ge(1), Le(1024)]
Positive = Annotated[float, Ge(1e-12), Le(1e6)]


class Unreadable(ValueError):
    """Why the content of a file cannot be used."""


def shorten(text: object, limit: int = REASON) -> str:
    """one_line, as short as a part of a message has to be."""
    return one_line(text, limit)


def read_bounded(file: Path, limit: int) -> bytes:
    """A file's bytes.

    Raises:
        FileNotFoundError: there is none.
        Unreadable: no ordinary file, one of more than `limit` bytes, or the pointer that stands for one in git.
    """
    try:
        if file.exists() and not file.is_file():
            raise Unreadable("it is not a file")
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(shorten(error.strerror or error)) from None
    if len(data) > limit:
        raise Unreadable(f"it has more than {limit // MIB} MiB")
    refuse_pointer(data)
    return data


def refuse_pointer(beginning: bytes) -> None:
    """Raise Unreadable for the first bytes of a git-lfs pointer."""
    if beginning.startswith(POINTER):
        raise Unreadable("it is a git-lfs pointer in place of the file; run `git lfs pull`")


def parse_json(data: bytes | str, finite: bool = True) -> Any:
    """A JSON value, nested at most about 200 deep.

    Args:
        finite: NaN and infinity, which JSON does not have and Python writes, are refused.

    Raises:
        Unreadable: no such JSON.
    """
    from pydantic_core import from_json

    try:
        return from_json(data, allow_inf_nan=not finite)
    except ValueError as error:
        raise Unreadable(f"not valid JSON: {shorten(error)}") from None


def read_json(file: Path, limit: int = MIB) -> Any:
    """parse_json of a file; raises as read_bounded and parse_json do."""
    return parse_json(read_bounded(file, limit))


def read_object(file: Path, limit: int = MIB, finite: bool = True) -> dict[str, Any]:
    """read_json where the value has to be an object."""
    value = parse_json(read_bounded(file, limit), finite)
    if not isinstance(value, dict):
        raise Unreadable(f"it holds a {type(value).__name__} instead of an object")
    return value


def validate(kind: Any, value: Any, name: str = "") -> Any:
    """A JSON value as an instance of `kind`: a dataclass, a TypedDict or whatever pydantic knows.

    Args:
        name: of the value, for an error.

    Nothing is converted but a whole number to a float and a list to a tuple; of a dataclass, fields that it does not
    have are ignored.

    Raises:
        Unreadable: the first thing that does not fit, with its place.
    """
    from pydantic import ValidationError
    from pydantic_core import PydanticSerializationError, to_json

    try:
        return _adapter(kind).validate_json(to_json(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = shorten(".".join(str(part) for part in ([name] if name else []) + list(first["loc"])), 80)
        given = "" if first["type"] == "missing" else f", this is {shorten(repr(first['input']), 40)}"
        raise Unreadable(f"{place}: {shorten(first['msg'], 100)}{given}") from None
    except (PydanticSerializationError, RecursionError) as error:
        raise Unreadable(shorten(error)) from None


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor is one of floating-point numbers in memory: not sparse, and not on the meta device."""
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
