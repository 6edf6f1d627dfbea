"""What Ctrl-C does to a command: one line and the exit code of an interrupt, at any time."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

INTERRUPTED = 130  # 128 + SIGINT, what shells use


def nothing() -> str:
    return "nothing was written"


class _Stop:
    """A handler of SIGINT that ends the process at once, with a line.

    As an exception an interrupt would pass through the modules of libraries, some of which swallow it, and print a
    traceback.
    """

    def __init__(self, command: str):
        self.command = command

    def __call__(self, signum: int, frame: Any) -> None:
        os.write(2, f"{self.command}: interrupted; {nothing()}.\n".encode())
        os._exit(INTERRUPTED)


def start(command: str, module: str, arguments: Sequence[str] | None = None) -> int:
    """Entry point of a command: an interrupt is heard before its module is imported.

    Args:
        command: what it is called.
        module: whose `main` does its work.
        arguments: default those of the process.
    """
    heard = _hear(_Stop(command))
    try:
        main: Callable[[Sequence[str] | None], int] = import_module(module).main
        return main(arguments)
    finally:
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def import_interruptibly(command: str, modules: Sequence[str]) -> None:
    """Import modules; an interrupt ends the process meanwhile. Afterwards it is a KeyboardInterrupt.

    What they make stays: Python does not look through it for garbage, then or later, which is much of what a short
    command would do.
    """
    heard, collects = _hear(_Stop(command)), gc.isenabled()
    new = [module for module in modules if module not in sys.modules]
    gc.disable()
    try:
        for module in new:
            import_module(module)
    finally:
        if new:  # else there is nothing but what is older, which may be garbage
            gc.freeze()
        if collects:
            gc.enable()
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _hear(handler: _Stop) -> bool:
    """Whether interrupts come to the handler now: not where somebody ignores them, or has a handler of their own."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        return False
    if before is not signal.default_int_handler and not isinstance(before, _Stop):
        return False
    signal.signal(signal.SIGINT, handler)
    return True
