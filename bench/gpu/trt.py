"""Engines of TensorRT and of TensorRT for RTX on this GPU: a shard of the trunk, whole and streamed, with and without
our Triton kernels."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from consisid.engine.backends import backend
from consisid.engine.backends.tensorrt.library import BuildOptions
from consisid.engine.backends.tensorrt.plugins import ATTRIBUTES
from consisid.engine.backends.tensorrt.run import LoadedEngine
from consisid.engine.graphs.grouped import TRUNK, grouped_table

from ..core.flops import graph_flops
from ..core.weights import load_graph
from .cases import Case, Context, Unavailable, Work

LAYERS = 2  # of the shard: the least that has a face attention
BUDGETS = (0.0, 0.25, 0.5, 0.75)  # shares of the weights on the device


class Shard:
    """A shard of the trunk with random weights, what it is called with, and what it gives by PyTorch."""

    def __init__(self, c: Context):
        self.c, self.graph = c, grouped_table(c.variant, c.shape, LAYERS)[f"{TRUNK}_0"]
        self.weights = c.weights.of(self.graph)[0]
        self.inputs = [
            c.randn(*(c.batch if size == "B" else int(size) for size in spec.shape), seed=i, dtype=spec.dtype) * 0.1
            for i, spec in enumerate(self.graph.specs().values())
        ]
        run = load_graph("eager", self.graph, None, c.device)
        self.eager = partial(run, self.inputs, self.weights)
        self.folder = TemporaryDirectory()

    def engine(self, name: str, plugins: tuple[str, ...] = ()) -> LoadedEngine:
        """The shard as an engine of a backend, all weights on the GPU; kept for the phase."""
        made: LoadedEngine = self.c.once(("engine", name, plugins), lambda: self._build(name, plugins))
        made.limit(None)
        return made

    def _build(self, name: str, plugins: tuple[str, ...]) -> LoadedEngine:
        from consisid.export.onnx.model import skeleton, write

        engines: Any = backend(name)
        engines.check(self.c.device)
        onnx, file = (Path(self.folder.name) / each for each in ("x.onnx", f"{name}{len(plugins)}.engine"))
        write(skeleton(self.graph, self.c.dtype, {"B": self.c.batch}), [w.cpu() for w in self.weights], onnx)
        engines.build(onnx, file, BuildOptions(plugins=plugins))
        loaded: LoadedEngine = engines.load(self.graph, file, self.c.device, [])
        return loaded


def engine(c: Context, name: str, plugins: tuple[str, ...] = (), share: float | None = None) -> Work:
    """A call of the shard by a backend.

    Args:
        share: of the weights that lie on the GPU; the others stream.
    """
    if c.device.type != "cuda":  # the meta device too: an engine is no graph that could be traced
        raise Unavailable(f"an engine of {name} needs a CUDA GPU")
    shard: Shard = c.once("shard", lambda: Shard(c))
    found, note = shard.engine(name, plugins), ""
    if share is not None:
        found.limit(int(share * found.streamable))
        note = f"{found.budget} of {found.streamable} bytes of weights on the GPU"
    run = partial(found, shard.inputs, ())
    return Work(run, c.compare(run(), shard.eager()), c.tolerance, note)


def trt(c: Context) -> Iterator[Case]:
    flops = graph_flops(c.variant, c.shape, "block") * c.batch * LAYERS

    def eager() -> Work:
        return Work(c.once("shard", lambda: Shard(c)).eager, note="what the others are compared with")

    yield Case("shard, eager", eager, flops)
    for name in ("tensorrt", "tensorrt-rtx"):
        make = partial(engine, c, name)
        yield Case(f"shard, {name}", make, flops)
        yield Case(f"shard, {name}, our kernels", partial(make, tuple(ATTRIBUTES)), flops)
        for share in BUDGETS:
            yield Case(f"shard, {name}, {share:.0%} of the weights resident", partial(make, share=share), flops)
