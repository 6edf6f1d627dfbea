"""Files that are written whole or not at all."""

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when the block ends well, and vanishes when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield aside
        os.chmod(aside, 0o755)  # mkdtemp's folders are private
        os.rename(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def file_aside(target: Path) -> Iterator[Path]:
    """As write_aside, for one file; an existing `target` is replaced.

    The file beside it has a name of its own that nobody can guess, of a length that does not depend on the target's,
    and the permissions that the umask gives, whatever the block does with it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = target.suffix if len(target.suffix) <= 16 else ""  # libraries choose a format by it
    aside = target.with_name(f".{secrets.token_hex(8)}{suffix}")
    with os.fdopen(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as created:
        mode = stat.S_IMODE(os.fstat(created.fileno()).st_mode)
    try:
        yield aside
        os.chmod(aside, mode)  # safetensors makes files that only their owner reads
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def check_place(target: Path) -> None:
    """Whether `target` can be written, tried with a nameless file in the folder that exists already.

    Raises:
        InputError: it is something else than a file, its name is too long, or it cannot be written.
    """
    try:
        if target.is_dir():
            raise InputError(f"{target} is a folder; give the file to write.")
        folder = next(parent for parent in target.absolute().parents if parent.exists())
        os.lstat(folder / target.name)  # a name that is too long shows here
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise unwritable(target, error) from None
    if target.exists() and not target.is_file():
        raise InputError(f"{target} is a device or a pipe, which would be replaced; give a file to write.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{target} cannot be written in {folder} ({error.strerror}); choose another place.") from error


def unwritable(target: Path, error: Exception) -> InputError:
    """What a system or a library said when `target` was written, as an error of ours."""
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{target} cannot be written ({reason}); check the free space, or choose another place.")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
