"""Every error that this package raises on purpose. Each message names the input, what is wrong and what to do."""


class ConsisIDError(Exception):
    """Base of all errors of this package; command lines print its message in one line and exit with 2."""


class InputError(ConsisIDError, ValueError):
    """A prompt, size, image or setting that cannot be used."""


class FaceError(InputError):
    """No usable face in a photograph."""


class CheckpointError(ConsisIDError):
    """A checkpoint that is missing, incomplete or of an unknown kind."""


class EngineError(ConsisIDError):
    """An engine folder that is stale, foreign, damaged or unfinished."""


class BackendError(ConsisIDError):
    """A backend that is not installed, or cannot do what was asked of it."""


class NumericalError(ConsisIDError):
    """NaN or infinity in the latents; the message names the step."""


class MemoryBudgetError(ConsisIDError):
    """A memory budget that cannot be met; the message names the smallest that can."""


class DeviceMemoryError(ConsisIDError):
    """The device ran out of memory; the message names the plan, the stage and the next smaller plan."""
