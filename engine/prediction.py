"""One prediction of the noise: the embedding, the blocks and the head, call by call, so that several loops can go
through the weights together; and the table of adaptive norms, computed before a loop because it does not change in it.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from .conditioning import Conditioning
from .graphs.trunk import join_tokens
from .runtime.executor import GraphExecutor
from .shortcuts import EXACT, Step

T = TypeVar("T")


@dataclass(frozen=True)
class TimeTable:
    """The adaptive norms of every step. modulation: [N, layers, 2, 2, 3, C]; out: [N, 2, C]."""

    timesteps: list[float]
    modulation: Tensor
    out: Tensor


def time_table(networks: GraphExecutor, timesteps: Tensor) -> TimeTable:
    """The modulation of every block at every step: once per schedule."""
    temb = networks.one("time_embed", timesteps.to(networks.device, torch.float32))
    modulation = networks.modulation(temb)
    return TimeTable(timesteps.tolist(), modulation, networks.one("out_modulation", temb))


class Prediction:
    """The predicted noise, float32 [G * b, F, 16, h, w], for latents [b, F, 16, h, w]: run it, then `take` the noise.
    Between two predictions of a loop nothing of it lies in scratch memory.

    Args:
        what: of the step; without its trunk, `change` is what that has changed before.
        change: [G * b, V, C], where a step with its trunk keeps what that changes, or the blocks behind the first.
        look: called with what the first block changes of the video tokens of some rows, where the step looks.
        rows: these.
        place: [G * b * (T + V) * C] or more, where the hidden state is between two calls: where others come in between,
            scratch memory would be left in pieces. None leaves it where it was made.
    """

    def __init__(
        self, networks: GraphExecutor, latents: Tensor, step: int, times: TimeTable, given: Conditioning,
        what: Step = EXACT, change: Tensor | None = None, place: Tensor | None = None,
        look: Callable[[Tensor], None] | None = None, rows: slice = slice(None),
    ):  # fmt: skip
        self.weights = networks.weights
        put = partial(_put, place)
        if what.looks:
            assert change is not None
            calls = _looking(networks, latents, step, times, given, what, change, put, look, rows)
        else:
            calls = _calls(networks, latents, step, times, given, what, change, put)
        self._calls: Generator[None, None, Tensor] | None = calls
        self._noise: Tensor | None = None
        self._error: Exception | None = None

    def advance(self) -> bool:
        """Make the next call; False when that was the last, or when it failed."""
        assert self._calls is not None
        try:
            next(self._calls)
            return True
        except StopIteration as end:
            self._noise = end.value
        except Exception as error:  # of this prediction alone: `take` raises it
            self._error = error
        self._calls = None
        return False

    def take(self) -> Tensor:
        """The noise, of which nothing is kept here; raises what a call has raised."""
        error, noise, self._error, self._noise = self._error, self._noise, None, None
        if error is not None:
            raise error
        assert noise is not None
        return noise

    def finish(self) -> None:
        """The noise leaves the scratch memory."""
        if self._noise is not None:
            self._noise = self.weights.keep(self._noise).float()


def _calls(
    networks: GraphExecutor, latents: Tensor, step: int, times: TimeTable, given: Conditioning, what: Step,
    change: Tensor | None, put: Callable[[Tensor], Tensor],
) -> Generator[None, None, Tensor]:  # fmt: skip
    if not what.trunk:
        assert change is not None
        embedded = networks.one("embed", latents, given.image)
        video = (change.unflatten(0, (-1, len(embedded))) + embedded).flatten(0, 1)
        return networks.one("head", video, times.out[step])
    tokens, rows = [put(join_tokens(given.text, networks.one("embed", latents, given.image)))], times.modulation[step]
    yield
    video = yield from networks.trunk(tokens, rows, given.cos, given.sin, given.keys, given.values, put)
    yield
    if not what.keep:
        return networks.one("head", video, times.out[step])
    # Embedded again: to hold it while the blocks run would take more memory than this takes time. Last, because where
    # calls are recorded they share the memory of their outputs.
    assert change is not None
    change.copy_(video)
    noise = networks.one("head", video, times.out[step])
    embedded = networks.one("embed", latents, given.image)
    change.unflatten(0, (-1, len(embedded))).sub_(embedded)
    return noise


Work = Generator[Prediction, None, T]
"""What stops wherever a prediction has to be run, and at last gives something."""


def _looking(
    networks: GraphExecutor, latents: Tensor, step: int, times: TimeTable, given: Conditioning, what: Step,
    change: Tensor, put: Callable[[Tensor], Tensor], look: Callable[[Tensor], None] | None, rows: slice,
) -> Generator[None, None, Tensor]:  # fmt: skip
    """With the first block in any case, and without the others what they changed last."""
    text = given.text.shape[1]
    hidden = put(join_tokens(given.text, networks.one("embed", latents, given.image)))
    yield
    first = networks.one("block", hidden, times.modulation[step][0], given.cos, given.sin)
    if look is not None:
        look(first[rows, text:] - hidden[rows, text:])
    del hidden
    tokens = [put(first)]
    del first
    yield
    if not what.trunk:
        return networks.one("head", tokens.pop()[:, text:] + change, times.out[step])
    change.copy_(tokens[0][:, text:]).neg_()
    table = times.modulation[step]
    video = yield from networks.trunk(tokens, table, given.cos, given.sin, given.keys, given.values, put, begun=True)
    yield
    change.add_(video)
    return networks.one("head", video, times.out[step])


def _put(place: Tensor | None, hidden: Tensor) -> Tensor:
    return hidden if place is None else place[: hidden.numel()].view(hidden.shape).copy_(hidden)


def run_together(predictions: Sequence[Prediction]) -> None:
    """Run predictions beside each other, a call of each at a time: what has passed through a layer together has needed
    its weights once. They are of engines with the same weights, and of what fails only its own `take` raises."""
    with predictions[0].weights.scratch("denoise"):
        going = predictions
        while going:
            going = [each for each in going if each.advance()]
    for each in predictions:
        each.finish()


def alone(work: Work[T]) -> T:
    """What comes of work that stops where a prediction has to be run."""
    while True:
        try:
            prediction = next(work)
        except StopIteration as end:
            found: T = end.value
            return found
        run_together([prediction])


def predict(
    networks: GraphExecutor, latents: Tensor, step: int, times: TimeTable, given: Conditioning, what: Step = EXACT,
    change: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The noise of one prediction."""
    prediction = Prediction(networks, latents, step, times, given, what, change)
    run_together([prediction])
    return prediction.take()
