"""Latency as a caller feels it: what lies outside the networks, and what a change of person or prompt costs."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from consisid.engine import ConsisID
from consisid.engine.checkpoint.reading import FACE_FILES

from ..core.inputs import identity, prompt_of
from ..core.samples import Ours, Row
from ..core.timing import probing, seconds_of

NOTES = {
    "open": "files hashed, weights read",
    "first generate() after open": "",
    "warm generate()": "",
    "of which outside the networks": "what is not between start and end of a graph",
    "between two steps": "scheduler and guidance; on a GPU the device's clock, small kernels of its own included",
    "another person": "embeddings given; extractor, folding, image encoder",
    "another prompt": "one prompt through the text encoder",
    "a photo seen before": "identify() of a 1 MP array, which is hashed; no network runs",
}


class Latency:
    """The rows of the section: one value of each with every call, so that these can lie far from each other, in a run
    that is long, and their spread is the machine's.

    Args:
        opening: seconds of ConsisID.open.
        first: seconds of the first generate() after it.
    """

    def __init__(self, engine: ConsisID, maker: Ours, opening: float, first: float):
        self.engine, self.maker, self.count = engine, maker, 0
        self.values: dict[str, list[float]] = {name: [] for name in NOTES}
        self.values |= {"open": [opening], "first generate() after open": [first]}
        # What a photo shows does not matter to the second call. Random weights at full size have no face models.
        self.photo = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
        self.faces = (engine.folder / engine.manifest.checkpoint / "face_encoder" / FACE_FILES["arcface"]).is_file()
        if self.faces:
            engine.identify(self.photo, aligned=True)

    @torch.no_grad()
    def __call__(self) -> None:
        engine, networks, index, values = self.engine, self.engine.networks(), self.count, self.values
        with probing(networks) as probe:
            total = self.maker(1000 + index).total
        values["warm generate()"].append(total)
        values["of which outside the networks"].append(max(0.0, total - probe.seconds()))
        values["between two steps"] += probe.idle()
        stranger, size = identity(engine.variant, seed=1000 + index), (engine.shape.height, engine.shape.width)
        calls: dict[str, Callable[[], object]] = {
            "another person": partial(engine.conditioner.images, networks, stranger, *size),
            "another prompt": partial(engine.text_encoder, networks, [prompt_of(2000 + index)]),
        }
        if self.faces:
            calls["a photo seen before"] = partial(engine.identify, self.photo, aligned=True)
        for name, call in calls.items():
            values[name].append(seconds_of(call, engine.device))
        self.count += 1

    def rows(self) -> list[Row]:
        """What was measured."""
        return [Row.of("latency", name, "s", seen, NOTES[name]) for name, seen in self.values.items() if seen]
