"""Files that are written whole or not at all."""

import hashlib
import os
import shutil
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
    """As write_aside, for one file; an existing `target` is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield aside
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def check_place(target: Path) -> None:
    """Whether `target` can be written, tried with a nameless file in the folder that exists already.

    Raises:
        InputError: it is a folder, or cannot be written.
    """
    if target.is_dir():
        raise InputError(f"{target} is a folder; give the file to write.")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{target} cannot be written in {folder} ({error.strerror}); choose another place.") from error


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
