"""Files that are written whole or not at all."""

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, WriteError


@contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when the block ends well, and vanishes when it does not.

    It and the files in it get the permissions that the umask gives, whatever the block does with them.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{secrets.token_hex(8)}")
    aside.mkdir()
    mode = stat.S_IMODE(aside.stat().st_mode) & 0o666
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)  # safetensors makes files that only their owner reads
        os.rename(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """As atomic_dir, for one file; an existing `target` is replaced.

    The file beside it has a name of its own that nobody can guess, of a length that does not depend on the target's,
    and the permissions that the umask gives, whatever the block does with it.

    Raises:
        WriteError: there is no place for it. What the block raises goes through.
    """
    suffix = target.suffix if len(target.suffix) <= 16 else ""  # libraries choose a format by it
    aside = target.with_name(f".{secrets.token_hex(8)}{suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as created:
            mode = stat.S_IMODE(os.fstat(created.fileno()).st_mode)
    except (OSError, ValueError) as error:
        raise unwritable(target, error) from error
    try:
        yield aside
        try:
            os.chmod(aside, mode)  # safetensors makes files that only their owner reads
            os.replace(aside, target)
        except (OSError, ValueError) as error:
            raise unwritable(target, error) from error
    finally:
        aside.unlink(missing_ok=True)


def write_nothing(file: BinaryIO) -> None:
    """The writer of `check_place` for what has none of its own: a block of zeros."""
    file.write(bytes(4096))


def check_place(target: Path, write: Callable[[BinaryIO], object] = write_nothing) -> None:
    """Whether `target` can be written, tried with a nameless file in the folder that exists already.

    Args:
        write: what writes a small file of the kind that will be written.

    Raises:
        InputError: it is a folder, a device or a pipe; WriteError where it cannot be written.
    """
    try:
        if target.is_dir():
            raise InputError(f"{target} is a folder; give the file to write.")
        folder = next(parent for parent in target.absolute().parents if parent.exists())
        os.lstat(target)  # a name that is too long shows here, or a null byte in it
    except (FileNotFoundError, NotADirectoryError):
        pass
    except InputError:  # which is a ValueError
        raise
    except (OSError, ValueError) as error:
        raise unwritable(target, error) from None
    if target.exists() and not target.is_file():
        raise InputError(f"{target} is a device or a pipe, which would be replaced; give a file to write.")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            write(file)
            file.flush()
    except OSError as error:
        reason = f"{target} cannot be written in {folder} ({error.strerror or error})"
        raise WriteError(f"{reason}; check the free space, or choose another place.") from error


def unwritable(target: Path, error: Exception) -> WriteError:
    """What a system or a library said when `target` was written, as an error of ours."""
    reason = getattr(error, "strerror", None) or error
    return WriteError(f"{target} cannot be written ({reason}); check the free space, or choose another place.")


def as_path(value: object) -> Path:
    """Raises InputError for what is no path."""
    try:
        return Path(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"A path is a text or a Path, not {type(value).__name__}.") from None


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
