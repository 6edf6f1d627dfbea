"""The engine without some of its techniques, composed from the same graph calls: the rungs of the waterfall."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from consisid.engine import ConsisID, Identity
from consisid.engine.backends import backend
from consisid.engine.conditioning import condition, extract_face
from consisid.engine.decode import image as decode
from consisid.engine.denoise import TimeTable, guidance_weight, predict, time_table
from consisid.engine.runtime.executor import GraphExecutor
from consisid.engine.sampling import Stepper, draw
from consisid.engine.text import TextEncoder

from .samples import Sample, prompt_of
from .timing import wait

T = TypeVar("T")
GUIDANCE = 6.0
FACE, MODULATION, INPUTS = "face", "modulation", "inputs"
HOISTED = frozenset({FACE, MODULATION, INPUTS})
"""What does not change in the loop: face extractor and folding of the face attention; the modulation of all blocks;
projection of the text and embedding of the image."""


def uncompiled(engine: ConsisID) -> GraphExecutor | None:
    """The engine's weights under graphs that run operator by operator; None where they do anyway, or where compiled
    engines hold the weights."""
    entries, spec = engine.manifest.graphs, engine.manifest.spec
    if spec.layers_per_shard or not any(entry.file for entry in entries.values()):
        return None
    eager = backend("eager")
    runners = {
        name: eager.load(graph, None, engine.device, entries[name].weights) for name, graph in spec.graphs().items()
    }
    return engine.networks().under(runners)


@dataclass
class Unhoisted:
    """The engine with some of what does not change in the loop computed in it. Same result as generate().

    Args:
        in_loop: of HOISTED, what every step computes anew.
        networks: other than the engine's own.
    """

    engine: ConsisID
    person: Identity
    steps: int
    in_loop: frozenset[str] = HOISTED
    networks: GraphExecutor | None = None

    def __post_init__(self) -> None:
        # Its own memory of prompts: what generate() has encoded is not to be found here.
        self._text = TextEncoder(self.engine.text_encoder.tokenizer)
        self._networks = self.networks or self.engine.networks()

    @torch.no_grad()
    def latents(self, embeds: Tensor, seed: int, times: list[float]) -> Tensor:
        """Final latents [1, F, 16, h, w] from prompt embeddings [2, T, C]; appends the clock to `times` per step."""
        engine, shape, networks = self.engine, self.engine.shape, self._networks
        generator = torch.Generator().manual_seed(seed)
        stepper = Stepper(engine.scheduler, self.steps, 0.0, generator)
        moments = engine.conditioner.images(networks, self.person, shape.height, shape.width)
        image = decode.first_frames([moments], [1], generator, shape) * engine.image_scale
        size = (1, shape.latent_frames, image.shape[2], shape.latent_height, shape.latent_width)
        latents = draw(size, generator, engine.device, engine.dtype) * engine.scheduler.init_noise_sigma
        positions = engine.conditioner.positions(shape)
        face = self._placed(FACE, self._features)
        given = self._placed(INPUTS, lambda: condition(networks, positions, embeds, image, face()))
        whole = None if MODULATION in self.in_loop else time_table(networks, stepper.timesteps)
        times.append(self._now())
        for step in range(self.steps):
            table, row = self._row(stepper, step) if whole is None else (whole, step)
            noise = predict(networks, stepper.scale(latents, step), row, table, given()).float()
            weight = guidance_weight(GUIDANCE, False, step, table.timesteps[row], self.steps)
            unconditional, prompted = noise.chunk(2)
            latents = stepper.step(unconditional + weight * (prompted - unconditional), step, latents)
            latents = latents.to(engine.dtype)
            times.append(self._now())
        return latents

    def _placed(self, what: str, make: Callable[[], T]) -> Callable[[], T]:
        """`make` where each step calls it, else one result of it."""
        if what in self.in_loop:
            return make
        made = make()
        return lambda: made

    def _features(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of an identity without a memory of its features in this engine."""
        return extract_face(self._networks, self.person)

    def _row(self, stepper: Stepper, step: int) -> tuple[TimeTable, int]:
        """The modulation of one step alone."""
        return time_table(self._networks, stepper.timesteps[step : step + 1]), 0

    def _now(self) -> float:
        wait(self.engine.device)
        return time.perf_counter()

    @torch.no_grad()
    def __call__(self, index: int) -> Sample:
        """Up to the latents: decoding is the same on every rung."""
        start = self._now()
        embeds = self._text(self._networks, ["", prompt_of(index)])
        text = self._now()
        times: list[float] = []
        self.latents(embeds, index, times)
        end = self._now()
        stages = {"text": text - start, "prepare": times[0] - text, "denoise": end - times[0]}
        return Sample(end - start, stages, [b - a for a, b in itertools.pairwise(times)])


UNCOMPILED, UNHOISTED = "ours uncompiled, without hoisting", "ours without hoisting"
FACE_ONCE, MODULATION_ONCE = "ours, face once", "ours, face and modulation once"
# What each computes in the loop, less than the one before.
RUNGS = {UNHOISTED: HOISTED, FACE_ONCE: HOISTED - {FACE}, MODULATION_ONCE: HOISTED - {FACE, MODULATION}}


def rungs(engine: ConsisID, person: Identity, steps: int) -> dict[str, Unhoisted]:
    """The rungs of an engine below diffusers and above the engine as it is."""
    networks = uncompiled(engine)
    below = {} if networks is None else {UNCOMPILED: Unhoisted(engine, person, steps, networks=networks)}
    return below | {name: Unhoisted(engine, person, steps, in_loop) for name, in_loop in RUNGS.items()}
