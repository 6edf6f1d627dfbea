"""consisid: one command with the others as its first word, and their completion in a shell."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from .util.cli import FAULT, installed_version

SHELLS = ("bash", "zsh", "tcsh")
# What is below this package does not know what is above it: a command is found by its entry point, as a shell does.
COMMANDS = {
    "build": "an engine folder from a checkpoint",
    "generate": "a video from an engine folder, a photo and a prompt",
    "bench": "a report of an engine folder on this machine",
    "serve": "an HTTP service with OpenAI's video API, and a page",
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "consisid", description="Videos of the person in a photo.",
        epilog="`consisid COMMAND --help` says more; consisid-COMMAND is the same command.",
    )  # fmt: skip
    p.add_argument("--version", action="version", version=f"%(prog)s {installed_version()}")
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, meaning in COMMANDS.items():
        commands.add_parser(name, help=meaning, add_help=False)
    completion = commands.add_parser("completion", help="print a shell's completion of these commands")
    completion.add_argument("shell", choices=SHELLS)
    return p


def point_of(command: str) -> EntryPoint | None:
    """The entry point of consisid-COMMAND; None where the package is not installed."""
    found = entry_points(group="console_scripts", name=f"consisid-{command}")
    return next(iter(found), None)


def completion(shell: str) -> str:
    """The script that completes `consisid` in a shell: `source <(consisid completion bash)`."""
    import shtab

    whole = argparse.ArgumentParser("consisid")
    whole.add_argument("--version", action="store_true", help="say which one is installed, and stop")
    commands = whole.add_subparsers()
    for name, meaning in COMMANDS.items():
        point = point_of(name)
        if point is not None:
            flags = import_module(f"{point.module.rpartition('.')[0]}.cli").parser()
            commands.add_parser(name, help=meaning, parents=[flags], add_help=False, conflict_handler="resolve")
    commands.add_parser("completion", help="print a shell's completion").add_argument("shell", choices=SHELLS)
    return str(shtab.complete(whole, shell))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of consisid; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in COMMANDS:
        point = point_of(words[0])
        if point is None:
            print(f"consisid: error: consisid-{words[0]} is not installed; pip install consisid.", file=sys.stderr)
            return FAULT
        command: Callable[[Sequence[str]], int] = point.load()
        return command(words[1:])
    options = parser().parse_args(words)
    print(completion(options.shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
