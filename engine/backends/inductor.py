"""AOTInductor: each graph traced by torch.export and compiled ahead of time into a .pt2 package.

The weights are inputs of the compiled graph like any other, so a package serves every layer and holds no weights.
Opening a package compiles nothing.
"""

from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from ..graphs.graph import Graph, weight_shapes
from . import Outputs, Runner

SUFFIX = ".pt2"
INT32 = 2**31 - 1  # elements that 32-bit indices reach
# Costs that change from call to call: that of the example (1 would be compiled in as a constant), least and largest.
# A compiled graph takes fewer samples B than that where more would need indices of 64 bits; see most_samples.
SIZES = {"B": (2, 1, 4096), "N": (3, 1, 4096), "H": (96, 33, 4096), "W": (128, 33, 4096)}
EXAMPLE_SIZES = {name: size[0] for name, size in SIZES.items()}
MOST_SAMPLES = "most_samples"  # the key of a package's metadata


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


def trace(
    graph: Graph, device: torch.device, dtype: torch.dtype, samples: int = SIZES["B"][2]
) -> torch.export.ExportedProgram:
    """The exported program of a graph, for any batch up to `samples`; on the meta device it costs no memory."""
    bound, specs, dtype = Bound(graph), list(graph.specs().values()), graph.dtype(dtype)
    inputs = [spec.example(EXAMPLE_SIZES, dtype, device) for spec in specs]
    inputs += [torch.empty(s, dtype=dtype, device=device) for s in weight_shapes(bound.hidden[0]).values()]
    ranges = {name: (least, largest) for name, (_, least, largest) in SIZES.items()} | {"B": (1, samples)}
    sizes = {name: torch.export.Dim(name, min=least, max=largest) for name, (least, largest) in ranges.items()}
    free: list[dict[int, object] | None] = [
        {i: sizes[size] for i, size in enumerate(spec.shape) if isinstance(size, str)} for spec in specs
    ]
    free += [None] * (len(inputs) - len(specs))
    with torch.no_grad():
        return torch.export.export(bound, tuple(inputs), dynamic_shapes=(tuple(free),), strict=False)


def most_samples(graph: Graph, program: torch.export.ExportedProgram) -> int:
    """How many samples a graph is compiled for: so many that none of its tensors has more than 2^31 - 1 elements.

    Inductor takes 32-bit indices only where the range of a size proves that they suffice; those of 64 bits cost a GPU
    twice the registers and several instructions for each multiplication. Where even two samples are too large for
    32 bits, the range of SIZES stays.
    """
    largest = SIZES["B"][2]
    if not any("B" in spec.shape for spec in graph.inputs.values()):
        return largest
    values = [value for node in program.graph.nodes for value in tree_leaves(node.meta.get("val"))]
    counts: list[Any] = [value.numel() for value in values if isinstance(value, Tensor)]
    sums = [count.node.expr for count in counts if isinstance(count, torch.SymInt)]
    found = min(largest, INT32 // max(int(each.subs(dict.fromkeys(each.free_symbols, 1))) for each in sums))
    return found if found >= EXAMPLE_SIZES["B"] else largest


def compile(graph: Graph, path: Path, device: torch.device, dtype: torch.dtype) -> None:
    program = trace(graph, device, dtype)
    samples = most_samples(graph, program)
    if samples < SIZES["B"][2]:
        program = trace(graph, device, dtype, samples)
    options = {
        "aot_inductor.compile_wrapper_opt_level": "O0",  # the wrapper only launches; optimising it costs minutes
        "aot_inductor.metadata": {MOST_SAMPLES: str(samples)},
    }
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

    batched = [spec.shape[:1] == ("B",) for spec in graph.inputs.values()]
    most = int(package.get_metadata()[MOST_SAMPLES])

    def once(inputs: Sequence[Tensor], tensors: Sequence[Tensor]) -> Outputs:
        # A compiled graph reads memory in the layout that it was traced with, and does not look at strides.
        outputs = package.run([*(x.contiguous() for x in inputs), *tensors])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(inputs: Sequence[Tensor], tensors: Sequence[Tensor]) -> Outputs:
        if all(len(x) <= most for x, cut in zip(inputs, batched, strict=False) if cut):
            return once(inputs, tensors)
        # A package does not check sizes: with more samples its indices would overflow.
        cuts = (x.split(most) if cut else repeat(x) for x, cut in zip(inputs, batched, strict=True))
        outputs = [once(part, tensors) for part in zip(*cuts, strict=False)]
        return torch.cat([out for out in outputs if isinstance(out, Tensor)])

    return run
