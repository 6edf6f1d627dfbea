"""A step against how many blocks stay on the GPU; the others come from pinned host memory while the block before
computes. A prototype: what the engine's memory plan should reach."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from consisid.engine.runtime import Held, Networks

from ..cost import step_cost
from ..weights import RandomWeights
from . import Case, Context, Work
from .step import Step, shared

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)


def spread(layers: int, streamed: int) -> list[int]:
    """Which of the layers stream: as far apart as they can be, so that each copy has compute to hide behind."""
    return [i for i in range(layers) if (i + 1) * streamed // layers != i * streamed // layers]


class Ring(Sequence[Any]):
    """The weights of the blocks; reading entry `layer` gives tensors on the device, resident or just arrived.

    Two buffers take turns. Asking for a layer says that the one before has been put to work, so its buffer is filled
    with the layer after next as soon as the device is done with it. The loop does not know that anything streams.
    """

    def __init__(self, weights: Sequence[Sequence[Tensor]], streamed: Sequence[int], device: torch.device):
        self.gpu, self.streamed = device.type == "cuda", list(streamed)
        self.weights: list[Sequence[Tensor]] = list(weights)
        for layer in self.streamed:
            self.weights[layer] = tuple(self._to_host(tensor) for tensor in self.weights[layer])
        self.copies = torch.cuda.Stream(device) if self.gpu else None
        first = self.weights[self.streamed[0]] if self.streamed else ()
        self.buffers = [tuple(torch.empty_like(x, device=device) for x in first) for _ in range(2)]
        self.ready: list[Any] = [None, None]
        self.used = 0  # how many streamed layers have been asked for
        self.busy = False  # whether the last of them may still be at work
        if self.streamed:
            self._fill(0)
            self._fill(1)

    def _to_host(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta":
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.gpu)
        return host.copy_(tensor)

    def _fill(self, turn: int) -> None:
        """Start the copy for the turn-th use of a streamed layer."""
        source = self.weights[self.streamed[turn % len(self.streamed)]]
        if self.copies is not None:
            self.copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.copies) if self.copies is not None else nullcontext():
            for target, tensor in zip(self.buffers[turn % 2], source, strict=True):
                target.copy_(tensor, non_blocking=True)
            if self.copies is not None:
                self.ready[turn % 2] = self.copies.record_event()

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, layer: Any) -> Any:
        if self.busy:
            self._fill(self.used + 1)  # the buffer of turn used - 1 is free once what was launched so far has run
            self.busy = False
        if layer not in self.streamed:
            return self.weights[layer]
        turn, self.used, self.busy = self.used, self.used + 1, True
        expected = self.streamed[turn % len(self.streamed)]
        if layer != expected:
            raise RuntimeError(f"Block {layer} was asked for where block {expected} is next; blocks stream in order.")
        if self.ready[turn % 2] is not None:
            torch.cuda.current_stream().wait_event(self.ready[turn % 2])
        return self.buffers[turn % 2]


def streaming(step: Step, share: float) -> tuple[Networks, int]:
    """Networks of which `share` of the blocks is resident, and how many blocks stream."""
    networks = step.networks
    held = RandomWeights.held(networks)
    layers = len(held["block"])
    streamed = spread(layers, layers - round(share * layers))
    ring: Any = Ring(held["block"], streamed, networks.device)
    weights = Held({**held, "block": ring})
    return Networks(networks.variant, networks.runners, weights, networks.device, networks.dtype), len(streamed)


def work(c: Context, share: float) -> Work:
    step, right = shared(c)
    networks, streamed = streaming(step, share)
    step.predict(networks)  # twice: the second takes turns in another order where the number streamed is odd
    error = c.compare(step.predict(networks), right)
    bytes_ = sum(x.numel() * x.element_size() for x in RandomWeights.held(step.networks)["block"][0])

    def more() -> dict[str, Any]:
        return {"streamed_blocks": streamed, "streamed_gb_per_step": streamed * bytes_ / 1e9}

    note = "identical to the resident step, or wrong" if c.gpu else "on a CPU only the order of work is shown"
    return Work(lambda: step.predict(networks), error, 0.0, note, more)


def cases(c: Context) -> Iterator[Case]:
    layers = c.variant.transformer.num_layers - 1
    flops = c.batch * step_cost(c.variant, c.shape).total
    for share in SHARES:
        name = f"step, {round(share * layers)} of {layers} blocks resident"
        yield Case(name, partial(work, c, share), flops, repeats=10)
