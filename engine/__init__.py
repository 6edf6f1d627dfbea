"""Run a ConsisID engine folder: `ConsisID.open(folder)`, then `identify` and `generate`."""

from .api import ConsisID
from .errors import ConsisIDError
from .identity import Identity
from .video import Video

__all__ = ["ConsisID", "ConsisIDError", "Identity", "Video"]
