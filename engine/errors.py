"""The exceptions of the engine: one line that names the input, what is wrong and what to do."""


class ConsisIDError(Exception):
    """Base of everything the engine raises on purpose."""


class InputError(ConsisIDError, ValueError):
    """Something the user gave cannot be used."""


class FaceError(InputError):
    """A photo without a usable face, or a face that was asked for and is not there."""
