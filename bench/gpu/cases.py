"""What `python -m consisid.bench.gpu` measures: phases, each a list of cases, and what all of them are given."""

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from consisid.engine import ConsisID
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import Variant

from ..core.weights import RandomWeights, build_random

PHASES: Mapping[str, str] = {
    "first": "the first call of a lent GPU: does all run, is it right, and what decides how long a video takes",
    "second": "the second call: a whole video, diffusers in turns, budgets of memory",
    "ceilings": "what the hardware gives: products, copies, host to device",
    "attention": "every implementation of joint attention at the full shape",
    "block": "one transformer block by part",
    "step": "denoising steps: in every mode of the loop, and by diffusers",
    "stream": "videos within budgets of device memory",
    "decode": "the VAE decoder: memory formats, whole decodes",
    "text": "the T5 encoder",
    "trt": "a shard of the transformer as an engine of TensorRT and of TensorRT for RTX",
    "e2e": "a whole generate() with random weights",
}
FILES = {"first": "calls", "second": "calls", "ceilings": "parts", "attention": "parts", "block": "parts", "trt": "trt"}
FILES |= {"step": "videos", "stream": "videos", "e2e": "videos", "decode": "coders", "text": "coders"}
EVERY = [name for name in PHASES if name not in ("first", "second")]  # which repeat rows of the others


class Unavailable(Exception):
    """A case that cannot be measured here; the message says why and stands in the table."""


@dataclass
class Work:
    """A case that is ready to be timed.

    Attributes:
        run: one call.
        error: ||out - reference|| / ||reference||, measured before anything is timed; None where there is nothing to
            compare, which `note` then explains.
        allowed: how large it may be.
        note: what a reader of the row has to know.
        more: called after timing; further figures for the row.
    """

    run: Callable[[], Any]
    error: float | None = None
    allowed: float = 0.0
    note: str = ""
    more: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Case:
    """One row. make allocates, checks and returns what is timed; flops and bytes turn seconds into rates.

    foreign: what runs is others' code, so that whatever it raises says nothing about ours and stands in its row.
    once: a single call, which is the one that is timed.
    budget: seconds of timing, None for those of the command.
    limit: seconds after which the row is given up.
    """

    name: str
    make: Callable[[], Work]
    flops: float = 0.0
    bytes: float = 0.0
    repeats: int = 30
    foreign: bool = False
    once: bool = False
    budget: float | None = None
    limit: float = math.inf


@dataclass(frozen=True)
class Context:
    """What all phases are given.

    dtype: bfloat16 on a GPU, float32 on a CPU.
    steps: of the e2e phase.
    checked: whether a wrong result fails its row.
    """

    variant: Variant
    shape: VideoShape
    device: torch.device
    dtype: torch.dtype
    steps: int = 4
    checked: bool = True
    batch: int = 2  # both halves of classifier-free guidance
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, variant: Variant, device: torch.device, dtype: torch.dtype | None = None, steps: int = 4, *,
        checked: bool = True,
    ) -> "Context":  # fmt: skip
        dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
        return cls(variant, VideoShape.of(variant, None, None, None), device, dtype, steps, checked)

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def tokens(self) -> int:
        return self.variant.transformer.max_text_seq_length + self.shape.video_tokens

    @property
    def tolerance(self) -> float:
        """What two right implementations may differ by, relative to the norm of the result.

        bfloat16 keeps 8 bits, so one rounding is 2e-3 and a block's worth of them up to 1e-2; float32 sums of a few
        thousand terms in another order stay below 1e-4.
        """
        return 1e-4 if self.dtype == torch.float32 else 2e-2

    @property
    def weights(self) -> RandomWeights:
        made: RandomWeights = self.once(
            "weights", lambda: RandomWeights(self.variant, self.shape, self.device, self.dtype)
        )
        return made

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What several cases of a phase share, made at first use."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def forget(self) -> None:
        """Drop what cases have shared so far."""
        self._made.clear()
        gc.collect()  # modules and traced functions hold each other

    def engine(self, **options: Any) -> ConsisID:
        """An engine with random weights, opened once with these options; its folder is there as long as what is shared.

        Raises:
            Unavailable: on the meta device.
        """
        if self.device.type == "meta":
            raise Unavailable("an engine needs a device with data")

        def made() -> TemporaryDirectory[str]:
            place = TemporaryDirectory(prefix="consisid-bench-")
            build_random(Path(place.name) / "engine", self.variant, self.device, self.dtype)
            return place

        folder = Path(self.once("folder", made).name) / "engine"
        engine: ConsisID = self.once(("engine", *options.items()), lambda: ConsisID.open(folder, **options))
        return engine

    def randn(self, *size: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Seeded normal numbers on the device."""
        if self.device.type == "meta":
            return torch.empty(size, device="meta", dtype=dtype or self.dtype)
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(size, generator=generator, device=self.device).to(dtype or self.dtype)

    def need_gpu(self, what: str) -> None:
        """Raises Unavailable on a CPU; nothing on the meta device, where a case is only built."""
        if self.device.type == "cpu":
            raise Unavailable(f"{what} needs a CUDA GPU")

    def compare(self, got: Sequence[Tensor] | Tensor, right: Sequence[Tensor] | Tensor) -> float | None:
        """The relative error of one or several tensors; None on the meta device. NaN is infinite."""
        if self.device.type == "meta":
            return None
        ours, theirs = ([x] if isinstance(x, Tensor) else x for x in (got, right))
        errors = [
            float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(ours, theirs, strict=True)
        ]
        return max(e if e == e else float("inf") for e in errors)


def guarded(name: str, section: Callable[[Context], Iterable[Case]], c: Context) -> Iterator[Case]:
    """The rows of a section; where making one of them raises, a row that says so in place of what is left of it."""

    def raising(error: Exception) -> Work:
        raise error

    try:
        yield from section(c)
    except Exception as error:  # the next section goes on
        yield Case(f"rest of {name}", partial(raising, error))
    c.forget()


def cases(phase: str, context: Context) -> Iterable[Case]:
    """The rows of a phase: what the function of its name in its file gives."""
    made: Iterable[Case] = getattr(import_module(f".{FILES[phase]}", __package__), phase)(context)
    return made
