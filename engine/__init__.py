"""Run a ConsisID engine folder: `ConsisID.open(folder)`, then `identify` and `generate`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import ConsisID
    from .errors import ConsisIDError
    from .face.identity import Identity
    from .many.jobs import Job, VideoRequest
    from .many.queue import QueueFull, VideoQueue
    from .pipeline import ConsisIDPipeline
    from .shortcuts import Shortcuts
    from .video import Video

    __version__: str

__all__ = [
    "ConsisID", "ConsisIDError", "ConsisIDPipeline", "Identity", "Job", "QueueFull", "Shortcuts", "Video", "VideoQueue",
    "VideoRequest", "__version__",
]  # fmt: skip

# The module of each name: imported when it is first asked for, so that a command line has a hold of an interrupt before
# PyTorch is imported, which takes seconds.
_MODULES = {
    "ConsisID": "api",
    "ConsisIDError": "errors",
    "ConsisIDPipeline": "pipeline",
    "Identity": "face.identity",
    "Job": "many.jobs",
    "QueueFull": "many.queue",
    "Shortcuts": "shortcuts",
    "Video": "video",
    "VideoQueue": "many.queue",
    "VideoRequest": "many.jobs",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module(".util.cli", __name__).installed_version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
