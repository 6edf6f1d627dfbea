"""Every error that this package raises on purpose. Each message names the input, what is wrong and what to do."""

import re

LONGEST = 1000  # characters of a message: names and values in it may come from a file of any size


def one_line(text: object, longest: int = LONGEST) -> str:
    """A text as one printable line: line breaks become a space, other control characters and halves of surrogate
    pairs are escaped, and of what is longer than `longest` characters the middle is left out."""
    words = re.sub(r"\s*[\t-\r]\s*", " ", str(text)).strip()
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)
    if len(line) <= longest:
        return line
    return f"{line[: longest * 2 // 3]} ... {line[-(longest // 3) :]}"


def shown(value: object) -> str:
    """A value that somebody gave, for an error: its repr, shortened; some values have none."""
    try:
        return one_line(repr(value), 100)
    except Exception:  # whatever a class of the caller's raises; and integers of more than 4300 digits
        return f"of the type {type(value).__name__}, which cannot be shown,"


class ConsisIDError(Exception):
    """Base of all errors of this package, each with a message of one line; command lines print it and exit with 2."""

    def __init__(self, message: object = ""):
        super().__init__(one_line(message))


class InputError(ConsisIDError, ValueError):
    """A prompt, size, image or setting that cannot be used."""


class WriteError(InputError):
    """A file that cannot be written: no space, no permission, no such place."""


class FaceError(InputError):
    """No usable face in a photograph."""


class CheckpointError(ConsisIDError, ValueError):
    """A checkpoint that is missing, incomplete or of an unknown kind."""


class EngineError(ConsisIDError, ValueError):
    """An engine folder that is stale, foreign, damaged or unfinished."""


class BackendError(ConsisIDError, RuntimeError):
    """A backend that is not installed, or cannot do what was asked of it."""


class NumericalError(ConsisIDError, ArithmeticError):
    """NaN or infinity in the latents; the message names the step."""


class MemoryBudgetError(ConsisIDError, ValueError):
    """A memory budget that cannot be met; the message names the smallest that can."""


class RankError(ConsisIDError, RuntimeError):
    """A process of an engine on several devices that failed, ended or does not answer; the message names its rank."""


class DeviceMemoryError(ConsisIDError, MemoryError):
    """The device ran out of memory; the message names the plan, the stage and the next smaller plan."""
