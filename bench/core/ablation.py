"""The engine without some of its techniques, composed from the same graph calls: what each of them gains."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from consisid.engine import ConsisID, Identity
from consisid.engine.backends import backend
from consisid.engine.conditioning import condition, extract_face
from consisid.engine.decode.image import first_frames
from consisid.engine.denoise import guidance_weight
from consisid.engine.prediction import predict, time_table
from consisid.engine.runtime.executor import GraphExecutor
from consisid.engine.sampling import Stepper, draw
from consisid.engine.text import TextEncoder

from .baselines import EAGER
from .inputs import GUIDANCE, prompt_of
from .samples import Row, Sample, steps_of
from .timing import now

T = TypeVar("T")
FACE, MODULATION, INPUTS = "face", "modulation", "inputs"
HOISTED = frozenset({FACE, MODULATION, INPUTS})
"""What does not change in the loop: face extractor and folding of the face attention; the modulation of all blocks;
projection of the text and embedding of the image."""
UNCOMPILED, UNHOISTED = "ours uncompiled, without hoisting", "ours without hoisting"
# What each computes in the loop, less than the one before.
IN_LOOP = {
    UNHOISTED: HOISTED,
    "ours, face once": HOISTED - {FACE},
    "ours, face and modulation once": HOISTED - {FACE, MODULATION},
}
GRAPHS = "one graph per block, fused q/k/v, folded face attention, no text in the last block"
TECHNIQUES = {
    EAGER.name: "the reference, eager",
    UNCOMPILED: GRAPHS,
    UNHOISTED: f"{GRAPHS}; as the engine's backend compiles them",
    "ours, face once": "the facial extractor, and keys and values of the face attention, once per person",
    "ours, face and modulation once": "the modulation of all blocks and steps in one product before the loop",
    "ours": "the text's projection and the image's half of the patch embedding once; generate() itself",
}


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


class Ablated:
    """The engine with some of what does not change in the loop computed in it. Same result as generate().

    Args:
        in_loop: of HOISTED, what every step computes anew.
        networks: other than the engine's own.
    """

    def __init__(
        self, engine: ConsisID, person: Identity, steps: int, in_loop: frozenset[str] = HOISTED,
        networks: GraphExecutor | None = None,
    ):  # fmt: skip
        self.engine, self.person, self.steps, self.in_loop = engine, person, steps, in_loop
        self.networks = networks or engine.networks()
        # Its own memory of prompts: what generate() has encoded is not to be found here.
        self._text = TextEncoder(engine.text_encoder.tokenizer)

    @torch.no_grad()
    def latents(self, embeds: Tensor, seed: int, times: list[float]) -> Tensor:
        """Final latents [1, F, 16, h, w] from prompt embeddings [2, T, C]; appends the clock to `times` per step."""
        engine, shape, networks = self.engine, self.engine.shape, self.networks
        generator = torch.Generator().manual_seed(seed)
        stepper = Stepper(engine.scheduler, self.steps, 0.0, generator)
        moments = engine.conditioner.images(networks, self.person, shape.height, shape.width)
        image = first_frames([moments], [1], generator, shape, engine.variant.vae)
        size = (1, shape.loop_frames, image.shape[2], shape.latent_height, shape.latent_width)
        latents = draw(size, generator, engine.device, engine.dtype) * engine.scheduler.init_noise_sigma
        positions = engine.conditioner.positions(shape)
        face = self._placed(FACE, lambda: extract_face(networks, self.person))
        given = self._placed(INPUTS, lambda: condition(networks, positions, embeds, image, face()))
        whole = None if MODULATION in self.in_loop else time_table(networks, stepper.timesteps)
        times.append(now(engine.device))
        for step in range(self.steps):
            row, table = step, whole
            if table is None:
                row, table = 0, time_table(networks, stepper.timesteps[step : step + 1])
            noise = predict(networks, stepper.scale(latents, step), row, table, given()).float()
            weight = guidance_weight(GUIDANCE, False, step, table.timesteps[row], self.steps)
            unconditional, prompted = noise.chunk(2)
            latents = stepper.step(unconditional + weight * (prompted - unconditional), step, latents)
            latents = latents.to(engine.dtype)
            times.append(now(engine.device))
        return latents

    def _placed(self, what: str, make: Callable[[], T]) -> Callable[[], T]:
        """`make` where each step calls it, else one result of it."""
        if what in self.in_loop:
            return make
        made = make()
        return lambda: made

    @torch.no_grad()
    def __call__(self, index: int) -> Sample:
        """Up to the latents: decoding is the same whatever is left out."""
        device, times = self.engine.device, list[float]()
        start = now(device)
        embeds = self._text(self.networks, ["", prompt_of(index)])
        text = now(device)
        self.latents(embeds, index, times)
        end = now(device)
        stages = {"text": text - start, "prepare": times[0] - text, "denoise": end - times[0]}
        return Sample(end - start, stages, [b - a for a, b in itertools.pairwise(times)])


def ablations(engine: ConsisID, person: Identity, steps: int) -> dict[str, Ablated]:
    """The engine with ever fewer techniques left out, between diffusers and the engine as it is."""
    networks = uncompiled(engine)
    below = {} if networks is None else {UNCOMPILED: Ablated(engine, person, steps, networks=networks)}
    return below | {name: Ablated(engine, person, steps, in_loop) for name, in_loop in IN_LOOP.items()}


def gains(samples: Mapping[str, Sequence[Sample]]) -> list[dict[str, Any]]:
    """Seconds of a step with one technique more in each row; gain is what that saves over the row above.

    `ratio` is to the row above in the same turn, so that what slows the machine for a while slows both: its median and
    quartiles over the turns.
    """
    rows, above = list[dict[str, Any]](), list[float]()
    for name, technique in TECHNIQUES.items():
        if name not in samples:
            continue
        turns = [statistics.median(sample.steps) for sample in samples[name]]
        row = {"name": name, "technique": technique, "step_seconds": statistics.median(steps_of(samples[name]))}
        row["gain"] = rows[-1]["step_seconds"] - row["step_seconds"] if rows else None
        if above:
            ratio = Row.of("", name, "", [now / before for now, before in zip(turns, above, strict=True)])
            row |= {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
        rows.append(row)
        above = turns
    return rows
