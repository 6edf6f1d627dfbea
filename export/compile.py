"""Which backend compiles a graph: the one asked for, or with "auto" the fastest that is right on this device."""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consisid.engine.backends import BACKENDS, Runner, backend, holds_weights
from consisid.engine.backends.inductor import EXAMPLE_SIZES
from consisid.engine.backends.tensorrt.build import capability
from consisid.engine.backends.tensorrt.library import BuildOptions
from consisid.engine.errors import BackendError, InputError, shown
from consisid.engine.graphs.graph import Graph
from consisid.engine.manifest import MOST_DEVICES
from consisid.engine.shapes import whole

from .onnx.compile import compile_through_onnx
from .toolkit import check_compiler, check_toolkit

LOG = logging.getLogger("consisid")
AUTO = "auto"
CANDIDATES = ("eager", "inductor")
HOLDERS = tuple(name for name in BACKENDS if holds_weights(name))
RUNS = 5
SMALL = 10**8  # parameters; of a model with fewer a CPU makes a video sooner than Inductor compiles its graphs
MOST_LAYERS = 1024  # in an engine that holds them, as its manifest has it

# Against eager in float32: another order of additions, over at most 20 layers in one graph.
EXACT = 1e-4
# In half precision: against float32, at most this times eager's own error.
HALF = 1.1


@dataclass(frozen=True)
class Choice:
    """Who compiled a graph, the file, and with "auto" the milliseconds of every candidate that was right and the reason
    against every other."""

    backend: str
    file: Path | None
    milliseconds: dict[str, float] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)


def compile_graph(
    name: str,
    graph: Graph,
    stem: Path,
    device: torch.device,
    dtype: torch.dtype,
    first_layer: Callable[[], Sequence[Tensor]],
    options: BuildOptions | None = None,
    unusable: Mapping[str, str] | None = None,
) -> Choice:
    """Compile with the backend `name`, or with all and keep the best.

    Args:
        stem: path of the file to write, without its ending.
        first_layer: gives the weights of the graph's first layer, for the comparison that "auto" makes, and for engines
            that hold their weights.
        options: of such an engine.
        unusable: candidates of "auto" that are not tried, with the reasons.
    """
    options = options or BuildOptions(streaming=False)
    if name != AUTO:
        return Choice(name, _make(name, graph, stem, device, dtype, first_layer, options))
    left = [candidate for candidate in candidates(graph, device) if candidate not in (unusable or {})]
    if left == ["eager"]:
        return Choice("eager", None, rejected=dict(unusable or {}))
    dtype = graph.dtype(dtype)
    names, weights = list(graph.weights), first_layer()
    inputs = _example(graph, device, dtype)
    truth = _outputs(
        backend("eager").load(graph, None, device, names),
        [x.float() if x.is_floating_point() else x for x in inputs],
        [w.float() for w in weights],
    )
    files: dict[str, Path | None] = {}
    milliseconds, errors, rejected = {}, {}, dict(unusable or {})
    for candidate in left:
        try:
            file = _make(candidate, graph, stem, device, dtype, lambda: weights, options)
        except BackendError as error:
            rejected[candidate] = str(error)
            continue
        runner = backend(candidate).load(graph, file, device, names)
        errors[candidate] = _error(_outputs(runner, inputs, weights), truth)
        limit = EXACT if dtype is torch.float32 else HALF * max(errors["eager"], EXACT)
        if candidate == "eager" or errors[candidate] <= limit:
            files[candidate] = file
            milliseconds[candidate] = _time(runner, inputs, weights, device)
            continue
        rejected[candidate] = f"its error of {errors[candidate]:.1e} is above {limit:.1e}"
        if file is not None:
            file.unlink()
    best = min(milliseconds, key=lambda candidate: milliseconds[candidate])
    for candidate, other in files.items():
        if candidate != best and other is not None:
            other.unlink()
    return Choice(best, files[best], milliseconds, rejected)


def candidates(graph: Graph, device: torch.device) -> tuple[str, ...]:
    """Who may compile a graph for this device: of the backends whose engines hold their weights those that run here,
    and only where a graph has one set of weights."""
    return CANDIDATES + tuple(name for name in HOLDERS if len(graph.layers) == 1 and _runs(name, device))


def not_worth_it(name: str, graphs: Mapping[str, Graph], device: torch.device) -> dict[str, str]:
    """Candidates of "auto" that take longer to compile than they save, each with the reason."""
    count = sum(len(graph.layers) * sum(map(prod, graph.weights.values())) for graph in graphs.values())
    if name != AUTO or device.type != "cpu" or count >= SMALL:
        return {}
    reason = f"{count / 1e6:.0f} million parameters on a CPU are not worth minutes of compiling"
    LOG.info("eager for all %d graphs: %s; --backend inductor compiles them", len(graphs), reason)
    return {"inductor": reason}


def _runs(name: str, device: torch.device) -> bool:
    engines: Any = backend(name)
    try:
        engines.check(device)
    except BackendError:
        return False
    return True


def _make(
    name: str,
    graph: Graph,
    stem: Path,
    device: torch.device,
    dtype: torch.dtype,
    weights: Callable[[], Sequence[Tensor]],
    options: BuildOptions,
) -> Path | None:
    if not holds_weights(name):
        return _compile(name, graph, stem, device, dtype)
    file = stem.with_suffix(f".{name}{backend(name).SUFFIX}")
    compile_through_onnx(name, graph, file, dtype, weights, options)
    return file


def _compile(name: str, graph: Graph, stem: Path, device: torch.device, dtype: torch.dtype) -> Path | None:
    module = backend(name)
    if module.SUFFIX is None:
        return None
    file = stem.with_suffix(module.SUFFIX)
    try:
        module.compile(graph, file, device, dtype)
    except Exception as error:  # compilers raise whatever they trip over; the graph's name is what a reader needs
        said = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = "install g++" if "compiler" in said.lower() else "build with --backend eager, which compiles nothing"
        raise BackendError(f"{name} could not compile the graph {graph.name} ({said}); {remedy}.") from error
    return file


def _example(graph: Graph, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return [spec.example(EXAMPLE_SIZES, dtype, device) for spec in graph.specs().values()]


def _outputs(runner: Runner, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        outputs = runner(inputs, weights)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest relative error of the outputs, in the 2-norm; NaN counts as infinite."""
    errors = [float((f.float() - t).norm() / t.norm().clamp(min=1e-30)) for f, t in zip(found, truth, strict=True)]
    return max(error if error == error else float("inf") for error in errors)


def _time(runner: Runner, inputs: Sequence[Tensor], weights: Sequence[Tensor], device: torch.device) -> float:
    samples = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        _outputs(runner, inputs, weights)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        samples.append((time.perf_counter() - start) * 1000)
    return statistics.median(samples[1:])  # the first is a warm-up


def check_backend(name: str) -> str:
    """The name, if there is such a backend; raises BackendError with the names that exist."""
    if not isinstance(name, str) or (name != AUTO and name not in BACKENDS):
        raise BackendError(
            f"There is no backend called {shown(name)}; the backends are {', '.join((AUTO, *BACKENDS))}."
        )
    return name


def check_layers(count: int) -> int:
    """Layers in an engine that holds its weights; raises InputError for a number that is none."""
    if not 1 <= whole("layers_per_shard", count) <= MOST_LAYERS:
        raise InputError(f"layers_per_shard={shown(count)} is not from 1 to {MOST_LAYERS}.")
    return int(count)


def check_sequence(count: int) -> None:
    """Devices that share the tokens; raises InputError for a number that is none."""
    if not 1 <= whole("sequence", count) <= MOST_DEVICES:
        raise InputError(f"sequence={shown(count)} is not from 1 to {MOST_DEVICES}.")


def find_unusable(name: str, device: torch.device) -> dict[str, str]:
    """Which candidates of "auto" cannot build for this device on this machine, each with the reason, which a warning
    says too.

    Raises:
        BackendError: the backend that was asked for by name is one of them.
    """
    if name not in (AUTO, "inductor"):
        return {}
    try:
        check_compiler()
        if device.type == "cuda":
            check_toolkit()
    except BackendError as error:
        if name != AUTO:
            raise
        warnings.warn(f"--backend auto leaves inductor out, so that graphs stay eager: {error}", stacklevel=3)
        return {"inductor": str(error)}
    return {}


def check_targets(name: str, targets: Sequence[str], flags: Sequence[str]) -> None:
    """Whether a backend can build for other GPUs, and what was asked for besides.

    Raises:
        BackendError: it cannot; or no engine of these compute capabilities, or of these flags together.
    """
    if (targets or flags) and not holds_weights(name):
        asked = f"--target {','.join(targets)}" if targets else f"--{flags[0].replace('_', '-')}"
        raise BackendError(f"The backend {name} has no {asked}; add --backend tensorrt-rtx.")
    engines: Any = backend(name) if holds_weights(name) else None
    if "refit" in flags and targets:
        raise BackendError(
            "An engine for another GPU cannot be made refittable, so it takes no LoRA; leave out --refit, or build on "
            "the GPU itself without --target."
        )
    for target in targets:
        capability(engines, target)
