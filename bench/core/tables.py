"""Figures on paper: Markdown tables, the line that says what made them, files that are written whole."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from consisid.engine.util.files import atomic_file


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [_line(heading), "|" + "---|" * len(heading), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def made_by(made: Mapping[str, Any]) -> str:
    """A stamp (environment.stamp) in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"{made['device']}; driver {made['driver'] or 'none'}; {versions}; commit {made['commit']}; {made['date']}"


def write_files(folder: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write texts by the names of their files, each whole or not at all; returns their paths."""
    for name, content in contents.items():
        with atomic_file(folder / name) as aside:
            aside.write_text(content)
    return [folder / name for name in contents]


def first_line(error: Exception, length: int = 200) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [""])[0][:length]
