"""Make an engine folder from a checkpoint: `build(checkpoint, folder)`."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import build

__all__ = ["build"]


class _Package(ModuleType):
    """A package whose `build` is the function of build.py. It is imported when it is first asked for, so that the
    command line has a hold of an interrupt before PyTorch is imported, which takes seconds."""

    def __getattr__(self, name: str) -> Any:
        if name != "build":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return import_module(".build", self.__name__).build

    def __setattr__(self, name: str, value: Any) -> None:
        # Whoever imports build.py, the import system would put the module here.
        if name != "build" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
