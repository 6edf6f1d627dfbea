"""What all command lines share: one-line errors with exit code 2, and a clean end when interrupted."""

import _thread
import argparse
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import ConsisIDError, one_line
from .interrupts import INTERRUPTED, import_interruptibly, nothing

FAULT = 1  # of this package; what a user can mend ends with REFUSED
REFUSED = 2
LATER = 0.02  # seconds until an interrupt that was swallowed comes again


def installed_version() -> str:
    """Of the package; "unknown" where the sources run without being installed."""
    try:
        return version("consisid")
    except PackageNotFoundError:
        return "unknown"


def add_common(parser: argparse.ArgumentParser) -> None:
    """Flags of every command: --version, --config, --json, --verbose and --quiet."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {installed_version()}")
    common = parser.add_argument_group("every command")
    common.add_argument(
        "--config", type=Path, metavar="TOML", help="a file with flags; the command line goes before it"
    )
    common.add_argument("--json", action="store_true", help="print the result as one JSON object, for scripts")
    loud = common.add_mutually_exclusive_group()
    loud.add_argument("-v", "--verbose", action="store_true", help="say how the memory is planned too")
    loud.add_argument("-q", "--quiet", action="store_true", help="say warnings and errors only")


@contextmanager
def spoken(command: str, options: argparse.Namespace | None, stages: bool) -> Iterator[None]:
    """What the package logs, a line each on stderr, as loud as the options say; without `stages` of a video only what
    --verbose asks for."""
    log, videos = logging.getLogger("consisid"), logging.getLogger("consisid.run")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{command}: %(message)s"))
    verbose, quiet = getattr(options, "verbose", False), getattr(options, "quiet", False)
    before, passed_on = log.level, log.propagate
    videos.setLevel(logging.NOTSET if stages or verbose else logging.WARNING)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        videos.setLevel(logging.NOTSET)
        log.setLevel(before)
        log.propagate = passed_on


def show(options: argparse.Namespace, values: Mapping[str, Any], text: str) -> None:
    """Print what came of a command: its values where --json asks for them, else the text."""
    print(json.dumps(values, default=str) if options.json else text)


def run(
    command: str, work: Callable[[], None], left: Callable[[], str] = nothing, imports: Sequence[str] = (),
    options: argparse.Namespace | None = None, stages: bool = True,
) -> int:  # fmt: skip
    """Run `work`; return the exit code. What goes wrong is printed in one line, without a traceback; where that is a
    fault of this package, the line names a file with it.

    Args:
        left: says what an interrupt leaves behind.
        imports: modules that `work` will import, when these take long.
        options: of add_common.
        stages: a line for each stage of a video is said; a command that makes many leaves that to --verbose.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        import_interruptibly(command, imports)
        with warnings.catch_warnings(), interrupts_come_through(), spoken(command, options, stages):
            # What libraries say to their developers is nothing that a user of a command can act on.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.showwarning = lambda message, *_, **__: say(f"{command}: warning: {one_line(message)}")
            work()
            sys.stdout.flush()
    except ConsisIDError as error:
        say(f"{command}: error: {error}")
        return REFUSED
    except BrokenPipeError:
        # Nobody reads on; what is still to be written must not fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULT
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        say(f"{command}: error: {one_line(what)}; check the path, its permissions and the free space.")
        return REFUSED
    except MemoryError:
        say(f"{command}: error: this machine has too little memory for it; ask for less, or use a larger one.")
        return REFUSED
    except KeyboardInterrupt:
        say(f"{command}: interrupted; {left()}.")
        return INTERRUPTED
    except Exception as error:
        what = one_line(f"{type(error).__name__}: {error}", 300)
        say(f"{command}: error: {what}; this is a fault of consisid, please report it with {keep_traceback(error)}.")
        return FAULT
    return 0


def say(line: str) -> None:
    print(line, file=sys.stderr)


def keep_traceback(error: BaseException) -> str:
    """The path of a new temporary file that holds where an error comes from."""
    import tempfile  # here: until an interrupt is heard, a command imports as little as it can
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="consisid-", suffix=".txt", delete=False, errors="replace") as file:
        file.writelines(traceback.format_exception(error))
    return file.name


@contextmanager
def interrupts_come_through() -> Iterator[None]:
    """An interrupt that falls into a place where Python can only report exceptions, such as a weak reference's
    callback, comes once more outside of it."""
    before = sys.unraisablehook

    def again(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(LATER, _thread.interrupt_main).start()  # at once it would come inside of this function
        else:
            before(unraisable)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
