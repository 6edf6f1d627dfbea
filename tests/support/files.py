"""Changes of files that are links to those of other tests: each replaces its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace(file: Path, content: bytes) -> None:
    file.unlink(missing_ok=True)  # the link, not what it points to
    file.write_bytes(content)


def truncate(file: Path) -> None:
    content = file.read_bytes()
    replace(file, content[: len(content) // 2])


def point(file: Path) -> None:
    """What git leaves of a file without git-lfs."""
    replace(file, b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n")


def edit(file: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON value in its file."""
    values = json.loads(file.read_text())
    change(values)
    replace(file, json.dumps(values).encode())
