"""The arguments of a command: from its line, and from files that say the same."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import one_line, shown

MOST = 2**20  # bytes of a file of arguments
MakeParser = Callable[[bool], argparse.ArgumentParser]
"""The parser of a command; False: nothing has to be given, since a file may say it."""
Reader = Callable[[Path], Mapping[str, Any]]
"""The values of a file by the names of the flags; raises ValueError with the reason why there are none."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of the example at the end as they are."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=110)


def parse(
    make: MakeParser, table: str, positional: str, needs: Sequence[str], arguments: Sequence[str] | None,
    readers: Mapping[str, Reader] | None = None,
) -> argparse.Namespace:  # fmt: skip
    """The arguments of a command. Where a file of arguments is among them, what it says stands for flags that are not
    given; with several files, the command line goes before --config, and that before the others.

    Args:
        table: of a TOML file that is for this command alone.
        positional: `dest` of the one argument that is no flag.
        needs: `dest`s of what has to be given.
        arguments: default those of the process.
        readers: of other files of arguments, by the flag that names the file.
    """
    line = sys.argv[1:] if arguments is None else list(arguments)
    sources = [*(readers or {}).items(), ("config", lambda file: read_toml(file, table))]
    first = argparse.ArgumentParser(make(True).prog, add_help=False, allow_abbrev=False)
    for flag, _ in sources:
        first.add_argument(f"--{flag}", type=Path)
    files = vars(first.parse_known_args(line)[0])
    if not any(files.values()):
        return make(True).parse_args(line)
    parser = make(False)
    given = argparse.Namespace()
    known = (set(vars(parser.parse_args([]))) | {positional}) - dict(sources).keys()  # no file names another
    for flag, read in sources:
        file = files[flag]
        if file is None:
            continue
        try:
            values = dict(read(file))
            words = _as_line(values, positional, known)
        except (OSError, ValueError, RecursionError) as error:
            reason = one_line(getattr(error, "strerror", None) or error)
            parser.error(f"argument --{flag}: {shown(str(file))}: {reason}")
        given = parser.parse_args(words, given)
    options = parser.parse_args(line, given)
    missing = [name for name in needs if getattr(options, name, None) is None]
    if missing:
        flags = ", ".join(name if name == positional else f"--{name.replace('_', '-')}" for name in missing)
        parser.error(f"the following arguments are required: {flags}")
    return options


def read_toml(file: Path, table: str) -> Mapping[str, Any]:
    """The keys of a TOML file, and those of one of its tables; its other tables are for other commands.

    Raises:
        ValueError: no TOML; OSError.
    """
    import tomllib

    with file.open("rb") as stream:
        text = stream.read(MOST + 1)
    if len(text) > MOST:
        raise ValueError("it has more than 1 MiB")
    values = tomllib.loads(text.decode())  # both errors are ValueErrors
    own = values.get(table, {})
    if not isinstance(own, Mapping):
        raise ValueError(f"{table} is the name of a table, of flags for this command")
    return {**{name: value for name, value in values.items() if not isinstance(value, Mapping)}, **own}


def _as_line(values: Mapping[str, Any], positional: str, known: set[str]) -> list[str]:
    """Values as the words of a command line; raises ValueError for names and values that it cannot have."""
    first, rest = [], []
    for name, value in values.items():
        dest = name.replace("-", "_")
        if dest not in known:
            raise ValueError(f"there is no flag called {shown(name)}")
        many = isinstance(value, list | tuple)
        for each in value if many else [value]:
            if not isinstance(each, str | int | float) or (many and isinstance(each, bool)):
                raise ValueError(f"{name} is neither text, number, true, false nor a list of these")
            if (many or dest == positional) and isinstance(each, str) and each.startswith("-"):
                raise ValueError(f"{shown(each)} of {name} would be read as a flag")
        flag = f"--{dest.replace('_', '-')}"
        if dest == positional:
            first.append(str(value))
        elif many:
            rest += [flag, *map(str, value)] if value else []
        elif isinstance(value, bool):
            rest += [flag] if value else []
        else:
            rest.append(f"{flag}={value}")
    return first + rest
