"""Engines of TensorRT and of TensorRT for RTX on this GPU: a shard of the trunk, whole and streamed, with and without
our Triton kernels, and those kernels launched through the CUDA driver."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consisid.engine.backends import backend
from consisid.engine.backends.tensorrt.library import BuildOptions
from consisid.engine.backends.tensorrt.plugins import ATTRIBUTES
from consisid.engine.backends.tensorrt.ptx import Kernel
from consisid.engine.backends.tensorrt.run import Captured, LoadedEngine
from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.graphs.grouped import TRUNK, grouped_table
from consisid.kernels.dispatch import default_config
from consisid.kernels.joint_attention import by_kernel

from ..core.flops import graph_flops
from .cases import Case, Context, Unavailable, Work

LAYERS = 2  # of the shard: the least that has a face attention
NAME = f"{TRUNK}_0"
BUDGETS = (0.0, 0.25, 0.5, 0.75)  # shares of the weights on the device


class Shard:
    """A shard of the trunk with random weights, what it is called with, and what it gives by PyTorch."""

    def __init__(self, c: Context):
        self.c, self.graph = c, grouped_table(c.variant, c.shape, LAYERS)[NAME]
        self.weights = c.weights.of(self.graph)[0]
        self.inputs = [
            c.randn(*(c.batch if size == "B" else int(size) for size in spec.shape), seed=i, dtype=spec.dtype) * 0.1
            for i, spec in enumerate(self.graph.specs().values())
        ]
        self._run = backend("eager").load(self.graph, None, c.device, list(weight_shapes(self.graph.module())))
        self.folder = tempfile.TemporaryDirectory()

    def eager(self) -> Any:
        return self._run(self.inputs, self.weights)

    def engine(self, name: str, plugins: tuple[str, ...] = ()) -> LoadedEngine:
        """The shard as an engine of a backend; kept for the phase."""
        return self.c.once(("engine", name, plugins), lambda: self._build(name, plugins))

    def _build(self, name: str, plugins: tuple[str, ...]) -> LoadedEngine:
        from consisid.export.onnx.model import skeleton, write

        engines: Any = backend(name)
        engines.check(self.c.device)
        folder = Path(self.folder.name)
        write(
            skeleton(self.graph, self.c.dtype, {"B": self.c.batch}), [w.cpu() for w in self.weights], folder / "x.onnx"
        )
        file = folder / f"{name}{len(plugins)}.engine"
        engines.build(folder / "x.onnx", file, BuildOptions(plugins=plugins))
        return engines.load(self.graph, file, self.c.device, [])


def need_gpu(c: Context, what: str) -> None:
    """Raises Unavailable without a GPU, on the meta device too: an engine is no graph that could be traced."""
    if c.device.type != "cuda":
        raise Unavailable(f"{what} needs a CUDA GPU")


def cases(c: Context) -> Iterator[Case]:
    blocks = graph_flops(c.variant, c.shape, "block") * c.batch * LAYERS

    def shard() -> Shard:
        return c.once("shard", lambda: Shard(c))

    def work(run: Any, note: str = "") -> Work:
        s = shard()
        return Work(partial(run, s.inputs, ()), c.compare(run(s.inputs, ()), s.eager()), c.tolerance, note)

    def engine(name: str, plugins: tuple[str, ...] = ()) -> Work:
        need_gpu(c, f"an engine of {name}")
        shard().engine(name, plugins).limit(None)
        return work(shard().engine(name, plugins))

    def streamed(name: str, share: float) -> Work:
        need_gpu(c, f"an engine of {name}")
        found = shard().engine(name)
        found.limit(None)
        found.limit(int(share * found.streamable))
        return work(found, f"{found.budget} of {found.streamable} bytes of weights on the GPU")

    def captured(name: str) -> Work:
        need_gpu(c, f"an engine of {name}")
        shard().engine(name).limit(None)
        return work(Captured(shard().engine(name), shard().inputs))

    yield Case("shard, eager", lambda: Work(shard().eager, note="what the others are compared with"), blocks)
    for name in ("tensorrt", "tensorrt-rtx"):
        yield Case(f"shard, {name}", partial(engine, name), blocks)
        yield Case(f"shard, {name}, CUDA graph", partial(captured, name), blocks)
        yield Case(f"shard, {name}, our kernels", partial(engine, name, tuple(ATTRIBUTES)), blocks)
        for share in BUDGETS:
            yield Case(f"shard, {name}, {share:.0%} of the weights resident", partial(streamed, name, share), blocks)
    yield Case("attention, PTX by the CUDA driver", lambda: launched(c))


def launched(c: Context) -> Work:
    """The code of the attention plugin with TensorRT's order of addresses, against Triton's own launch."""
    need_gpu(c, "a launch through the CUDA driver")
    from consisid.kernels.aot.ptx import compile_standalone

    t = c.variant.transformer
    size = (c.batch, c.tokens, t.num_attention_heads, t.attention_head_dim)
    q, k, v = (c.randn(*size, seed=seed) for seed in range(3))
    major, minor = torch.cuda.get_device_capability(c.device)
    scale = t.attention_head_dim**-0.5
    kernel = Kernel(compile_standalone("joint_attention", [q.shape] * 3, q.dtype, [scale], 10 * major + minor))
    out = torch.empty_like(q)

    def run() -> Tensor:
        stream = torch.cuda.current_stream(c.device).cuda_stream
        kernel.launch([x.data_ptr() for x in (q, k, v, out)], stream)
        return out

    config = default_config((major, minor), q.dtype)
    plain = config if not config.descriptors else default_config((8, 0), q.dtype)
    same = (
        "the same bytes as Triton's launch" if torch.equal(run(), by_kernel(q, k, v, scale, plain)) else "other bytes"
    )
    return Work(run, c.compare(run(), by_kernel(q, k, v, scale, plain)), c.tolerance, same)
