"""Graphs that processes of their own compile, as the engine does, while this one measures."""

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from consisid.engine.backends import backend

from ..core.weights import load_graph
from .cases import Context


class Compiling:
    """Packages of AOTInductor, all compiled at once.

    Attributes:
        seconds: of each graph, when `wait` has returned.
    """

    def __init__(self, c: Context, names: Sequence[str]):
        self._folder = TemporaryDirectory()
        self.files = {name: Path(self._folder.name) / f"{name}.pt2" for name in names}
        self.seconds: dict[str, float] = {}
        spawn, given = multiprocessing.get_context("spawn"), replace(c, _made={})
        self._processes: list[Any] = [
            spawn.Process(target=compile_graph, args=(given, *item)) for item in self.files.items()
        ]
        for process in self._processes:
            process.start()

    def wait(self) -> None:
        """Raises RuntimeError where a process failed; what it printed stands above."""
        for process in self._processes:
            process.join()
        codes = [process.exitcode for process in self._processes]
        if any(codes):
            raise RuntimeError(f"the processes that compile ended with {codes}")
        self.seconds = {name: float(file.with_suffix(".seconds").read_text()) for name, file in self.files.items()}

    def load(self, c: Context) -> dict[str, Any]:
        """Each graph by its package."""
        return {name: load_graph("inductor", c.weights.table[name], file, c.device)
                for name, file in self.files.items()}  # fmt: skip

    def close(self) -> None:
        for process in self._processes:
            process.kill()


def compile_graph(c: Context, name: str, package: Path) -> None:
    """In a process of its own; the seconds that it took lie beside the package."""
    start, module = time.perf_counter(), backend("inductor")
    module.compile(c.weights.table[name], package, c.device, c.dtype)
    package.with_suffix(".seconds").write_text(str(time.perf_counter() - start))


def torch_compiled(runners: Mapping[str, Any]) -> dict[str, Any]:
    """Graphs under torch.compile: weights stay arguments, so a block is compiled once."""
    return {name: torch.compile(run, dynamic=False) for name, run in runners.items()}
