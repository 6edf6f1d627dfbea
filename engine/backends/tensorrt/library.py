"""TensorRT's Python module and that of TensorRT for RTX: what both are asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ...errors import BackendError

# Least, usual and largest size of each symbol of a graph (graphs.Spec). One size three times is a fixed shape.
PROFILES: Mapping[str, Mapping[str, tuple[int, int, int]]] = {
    "batched": {"B": (2, 2, 2), "N": (1, 50, 200), "H": (64, 640, 1024), "W": (64, 640, 1024)},
    "single": {"B": (1, 1, 1)},
}
OLDEST_DRIVER = 13000  # of the CUDA driver API, as cudaDriverGetVersion counts: the wheels are made with CUDA 13


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        targets: compute capabilities such as "sm_89" that it is built for; none for the GPU of this machine.
        streaming: its weights can stay in host memory, within a budget that is set when it is loaded.
        refit: its weights can be replaced, for a LoRA; only for the GPU of this machine.
        version_compatible: later versions of TensorRT may load it.
        hardware_compatible: other GPUs of the same compute capability may load it.
        timing_cache: a file of measurements that builds share, made when it is not there.
        plugins: operators of the domain consisid that a plugin runs instead of the graph's own function.
    """

    targets: tuple[str, ...] = ()
    streaming: bool = True
    refit: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None
    plugins: tuple[str, ...] = ()


class Library:
    """The Python module of TensorRT or of TensorRT for RTX, imported when it is first asked for.

    Args:
        name: of the backend.
        package: the Python module.
        extra: of this package, which installs it.
    """

    def __init__(self, name: str, package: str, extra: str):
        self.name, self.package, self.extra = name, package, extra

    @cached_property
    def api(self) -> Any:
        """The module.

        Raises:
            BackendError: it is not installed, or its libraries are not.
        """
        try:
            return import_module(self.package)
        except (ImportError, OSError) as error:
            raise BackendError(
                f"The backend {self.name} needs {self.package}, which cannot be imported ({error}); "
                f"pip install 'consisid[{self.extra}]'."
            ) from None

    @cached_property
    def log(self) -> Any:
        """Keeps what the library says; it wants one logger for all that it does."""
        severity = self.api.ILogger

        class Log(severity):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                severity.__init__(self)
                self.lines: list[str] = []
                self.errors: list[str] = []

            def log(self, level: Any, message: str) -> None:
                self.lines.append(message)
                if level <= severity.ERROR:
                    self.errors.append(message)

            def clear(self) -> None:
                self.lines, self.errors = [], []

        return Log()

    def check(self, device: torch.device) -> None:
        """Raises BackendError where engines cannot run."""
        if device.type != "cuda" or not torch.cuda.is_available():
            raise BackendError(
                f"Engines of {self.name} run on an NVIDIA GPU, and there is none; use a build for the CPU."
            )
        version = driver_version()
        if version < OLDEST_DRIVER:
            raise BackendError(
                f"The NVIDIA driver knows CUDA {version // 1000}.{version % 1000 // 10} and {self.package} needs "
                f"{OLDEST_DRIVER // 1000}.0; update the driver."
            )
        self.api  # noqa: B018  # raises where it is missing


def driver_version() -> int:
    """The newest CUDA that the driver knows, as cuDriverGetVersion counts: 13000 for 13.0."""
    read: Any = getattr(torch._C, "_cuda_getDriverVersion", None)  # only in builds with CUDA
    return int(read()) if read is not None else 0
