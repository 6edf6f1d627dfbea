"""Calls of the denoising loop as CUDA graphs: what a call launches is recorded once, and launched at once after that.

A recording knows nothing but addresses. So inputs are copied into static buffers before it is replayed, a recording
belongs to the addresses of its weights (a ring of two buffers needs two, whatever number of blocks passes through it),
and all are dropped when weights leave the device.

The rule of outputs: a replay writes them to static buffers, which calls with outputs of the same shapes share; they are
valid until the next call. In the loop the next call copies them in before anything is replayed. What lives longer, the
outputs of graphs that are `kept`, is copied out: one half of guidance waits for the other.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..backends import Outputs, Runner
from ..graphs.graph import Graph


class Recorder(Protocol):
    """Records what a function launches."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """What does again all that `function` would do on the device, on the same memory. The function may or may not
        take effect while it is recorded."""


class CudaRecorder:
    """CUDA graphs that share one pool of memory: they are replayed one after the other, on one stream."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            function()
        return graph.replay


class Buffers:
    """Tensors at fixed addresses, by what they are for: a role, a position, a shape and a dtype."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Tensor] = {}

    def like(self, role: str, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The buffers for tensors of such shapes; contiguous, whatever the tensors are."""
        keys = [(role, position, x.shape, x.dtype) for position, x in enumerate(tensors)]
        for key, x in zip(keys, tensors, strict=True):
            if key not in self._held:
                self._held[key] = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        return tuple(self._held[key] for key in keys)


@dataclass
class Captured:
    """A runner that is recorded: its first call with some shapes and weights is an ordinary one, which makes whatever
    is made late; the second is recorded and replayed, as are all that follow.

    Args:
        run: launches the same kernels for the same shapes, and waits for nothing.
        keep: whether outputs are copied out of the static buffers.
    """

    run: Runner
    recorder: Recorder
    buffers: Buffers
    keep: bool
    _outputs: dict[Hashable, tuple[Tensor, ...]] = field(default_factory=dict)
    _replays: dict[Hashable, Callable[[], None]] = field(default_factory=dict)

    def __call__(self, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Outputs:
        key = tuple((x.shape, x.dtype) for x in inputs), tuple(weight.data_ptr() for weight in weights)
        if key not in self._outputs:
            outputs = self.run(inputs, weights)
            self._outputs[key] = self.buffers.like("output", _several(outputs))
            return outputs
        targets, static = self._outputs[key], self.buffers.like("input", inputs)
        for buffer, given in zip(static, inputs, strict=True):
            buffer.copy_(given)
        if key not in self._replays:

            def record() -> None:
                for target, output in zip(targets, _several(self.run(static, weights)), strict=True):
                    target.copy_(output)

            self._replays[key] = self.recorder.capture(record)
        self._replays[key]()
        found = tuple(x.clone() for x in targets) if self.keep else targets
        return found[0] if len(found) == 1 else found


class Captures:
    """All recordings of an engine.

    Args:
        recorder: makes a recorder; whenever recordings are dropped, a new one.
    """

    def __init__(self, recorder: Callable[[], Recorder] = CudaRecorder):
        self._make, self._recorder = recorder, recorder()
        self._buffers = Buffers()
        self._kept: dict[Runner, Captured] = {}

    def wrap(self, graph: Graph, run: Runner) -> Runner:
        """The runner of a graph; recorded, if its calls are the loop's."""
        if graph.stage != "denoise":
            return run

        def call(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Outputs:
            if run not in self._kept:
                self._kept[run] = Captured(run, self._recorder, self._buffers, graph.kept)
            return self._kept[run](inputs, weights)

        return call

    def clear(self) -> None:
        """Forget everything: weights leave, and with them the addresses that recordings know."""
        if self._kept:
            self._kept, self._buffers, self._recorder = {}, Buffers(), self._make()


def _several(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
