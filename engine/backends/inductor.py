"""AOTInductor: each graph traced by torch.export and compiled ahead of time into a .pt2 package.

The weights are inputs of the compiled graph like any other, so a package serves every layer and holds no weights.
Opening a package compiles nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..graphs import Graph, weight_shapes
from . import Outputs, Runner

SUFFIX = ".pt2"
# Sizes that change from call to call: that of the example (1 would be compiled in as a constant), least and largest.
SIZES = {"B": (2, 1, 4096), "N": (3, 1, 4096), "H": (96, 33, 4096), "W": (128, 33, 4096)}
EXAMPLE_SIZES = {name: size[0] for name, size in SIZES.items()}


class Bound(nn.Module):
    """A graph as a function of its inputs and then its weights, all tensors, in one flat list."""

    def __init__(self, graph: Graph):
        super().__init__()
        module = graph.module()
        self.names = list(weight_shapes(module))
        # Hidden in a tuple from nn.Module, which would trace the weights on the meta device as constants.
        self.hidden = (module,)

    def forward(self, *tensors: Tensor) -> Outputs:
        count = len(tensors) - len(self.names)
        weights = dict(zip(self.names, tensors[count:], strict=True))
        return functional_call(self.hidden[0], weights, tensors[:count])


def trace(graph: Graph, device: torch.device, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """The exported program of a graph, for any batch; on the meta device it costs no memory."""
    bound, specs, dtype = Bound(graph), list(graph.specs().values()), graph.dtype(dtype)
    inputs = [spec.example(EXAMPLE_SIZES, dtype, device) for spec in specs]
    inputs += [torch.empty(s, dtype=dtype, device=device) for s in weight_shapes(bound.hidden[0]).values()]
    sizes = {name: torch.export.Dim(name, min=least, max=largest) for name, (_, least, largest) in SIZES.items()}
    free: list[dict[int, object] | None] = [
        {i: sizes[size] for i, size in enumerate(spec.shape) if isinstance(size, str)} for spec in specs
    ]
    free += [None] * (len(inputs) - len(specs))
    with torch.no_grad():
        return torch.export.export(bound, tuple(inputs), dynamic_shapes=(tuple(free),), strict=False)


def compile(graph: Graph, path: Path, device: torch.device, dtype: torch.dtype) -> None:
    program = trace(graph, device, dtype)
    options = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # the wrapper only launches; optimising it costs minutes
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def load(graph: Graph, path: Path | None, device: torch.device, weights: Sequence[str]) -> Runner:
    index = -1
    if device.type == "cuda":
        index = device.index or 0
        from consisid.kernels import ops  # noqa: F401  # a package may call the operators that this registers
    # torch._inductor.aoti_load_package is this loader behind an import of the whole compiler (seconds) and a probe of
    # the C++ compiler (which need not be there); one runner, because a stream runs one graph at a time.
    # Its third argument, run_single_threaded, leaves out the pool of runners, which with one runner makes the host wait
    # for the call before, and whose locks ask the device for events, which a capture forbids.
    package = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, index)

    def run(inputs: Sequence[Tensor], tensors: Sequence[Tensor]) -> Outputs:
        # A compiled graph reads memory in the layout that it was traced with, and does not look at strides.
        outputs = package.run([*(x.contiguous() for x in inputs), *tensors])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run
