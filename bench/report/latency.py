"""Latency as a caller feels it: what lies outside the networks, and what a change of person or prompt costs."""

from collections.abc import Callable

import numpy as np
import torch

from consisid.engine import ConsisID
from consisid.engine.checkpoint.reading import FACE_FILES

from ..core.inputs import identity, prompt_of
from ..core.samples import Ours, Row
from ..core.timing import probing, seconds_of


def engine_has_faces(engine: ConsisID) -> bool:
    """Whether there are face models: random weights at full size have none."""
    return (engine.folder / engine.manifest.checkpoint / "face_encoder" / FACE_FILES["arcface"]).is_file()


def identify_again(engine: ConsisID) -> Callable[[], object]:
    """identify() of a picture that the engine has identified once; what it shows does not matter to the second call."""
    photo = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    engine.identify(photo, aligned=True)
    return lambda: engine.identify(photo, aligned=True)


class Latency:
    """The rows of the section: one value of each with every call, so that these can lie far from each other, in a run
    that is long, and their spread is the machine's."""

    def __init__(self, engine: ConsisID, maker: Ours):
        self.engine, self.maker, self.count = engine, maker, 0
        self.warm, self.outside, self.idle = list[float](), list[float](), list[float]()
        self.person, self.prompt, self.seen = list[float](), list[float](), list[float]()
        self.identify = identify_again(engine) if engine_has_faces(engine) else None

    @torch.no_grad()
    def __call__(self) -> None:
        engine, networks, index = self.engine, self.engine.networks(), self.count
        with probing(networks) as probe:
            total = self.maker(1000 + index).total
        self.warm.append(total)
        self.outside.append(max(0.0, total - probe.seconds()))
        self.idle += probe.idle()
        stranger, size = identity(engine.variant, seed=1000 + index), (engine.shape.height, engine.shape.width)
        calls: list[tuple[list[float], Callable[[], object] | None]] = [
            (self.person, lambda: engine.conditioner.images(networks, stranger, *size)),
            (self.prompt, lambda: engine.text_encoder(networks, [prompt_of(2000 + index)])),
            (self.seen, self.identify),
        ]
        for values, call in calls:
            if call is not None:
                values.append(seconds_of(call, engine.device))
        self.count += 1

    def rows(self, opening: float, first: float) -> list[Row]:
        """What was measured.

        Args:
            opening: seconds of ConsisID.open.
            first: seconds of the first generate() after it.
        """
        found = (
            ("open", [opening], "files hashed, weights read"),
            ("first generate() after open", [first], ""),
            ("warm generate()", self.warm, ""),
            ("of which outside the networks", self.outside, "what is not between start and end of a graph"),
            ("between two steps", self.idle,
             "scheduler and guidance; on a GPU the device's clock, small kernels of its own included"),
            ("another person", self.person, "embeddings given; extractor, folding, image encoder"),
            ("another prompt", self.prompt, "one prompt through the text encoder"),
            ("a photo seen before", self.seen, "identify() of a 1 MP array, which is hashed; no network runs"),
        )  # fmt: skip
        return [Row.of("latency", name, "s", values, note) for name, values, note in found if values]
