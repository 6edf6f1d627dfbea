"""What all command lines share: one-line errors with exit code 2, and a clean end when interrupted."""

import sys
import warnings
from collections.abc import Callable

from .errors import ConsisIDError

INTERRUPTED = 130  # 128 + SIGINT, what shells use


def nothing() -> str:
    return "nothing was written"


def run(command: str, work: Callable[[], None], left: Callable[[], str] = nothing) -> int:
    """Run `work`; return the exit code. What goes wrong on purpose, and what a system refuses, is printed in one line,
    without a traceback. `left` says what an interrupt leaves behind.
    """
    try:
        with warnings.catch_warnings():
            # What libraries say to their developers is nothing that a user of a command can act on.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.showwarning = lambda message, *_, **__: print(f"{command}: warning: {message}", file=sys.stderr)
            work()
    except ConsisIDError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        print(f"{command}: error: {what}; check the path, its permissions and the free space.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{command}: interrupted; {left()}.", file=sys.stderr)
        return INTERRUPTED
    return 0
