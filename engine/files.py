"""Files that are written whole or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
