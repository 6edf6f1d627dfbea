"""The engine without one of its techniques, composed from the same graph calls: the rungs of the waterfall."""

import itertools
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from consisid.engine import ConsisID, Identity, decode
from consisid.engine.denoise import condition, guidance_weight, predict, time_table
from consisid.engine.noise import draw
from consisid.engine.schedulers import Stepper
from consisid.engine.text import TextEncoder

from .runs import Sample, prompt_of
from .timing import wait

GUIDANCE = 6.0


@dataclass
class Unhoisted:
    """Everything that does not change in the loop is computed in the loop: face extractor, folding of the face
    attention, text projection, image embedding, and the modulation of the step alone. Same result as generate()."""

    engine: ConsisID
    person: Identity
    steps: int

    def __post_init__(self) -> None:
        # Its own memory of prompts: what generate() has encoded is not to be found here.
        self._text = TextEncoder(self.engine.text_encoder.tokenizer)

    @torch.no_grad()
    def latents(self, embeds: Tensor, seed: int, times: list[float]) -> Tensor:
        """Final latents [1, F, 16, h, w] from prompt embeddings [2, T, C]; appends the clock to `times` per step."""
        engine, shape, networks = self.engine, self.engine.shape, self.engine.networks()
        generator = torch.Generator().manual_seed(seed)
        stepper = Stepper(engine.scheduler, self.steps, 0.0, generator)
        moments = self.person.moments(networks, shape.height, shape.width)
        image = decode.pad_image(decode.sample_posterior(moments, 1, generator), shape) * engine.image_scale
        size = (1, shape.latent_frames, image.shape[2], shape.latent_height, shape.latent_width)
        latents = draw(size, generator, engine.device, engine.dtype) * engine.scheduler.init_noise_sigma
        positions = engine.positions(shape)
        times.append(self._now())
        for step in range(self.steps):
            # An identity without a memory of its features in this engine.
            stranger = Identity.from_embeddings(self.person.id_cond, self.person.id_vit_hidden, self.person.image)
            given = condition(networks, positions, embeds, image, stranger.features(networks))
            table = time_table(networks, stepper.timesteps[step : step + 1])
            noise = predict(networks, stepper.scale(latents, step), 0, table, given).float()
            weight = guidance_weight(GUIDANCE, False, step, table.timesteps[0], self.steps)
            unconditional, prompted = noise.chunk(2)
            latents = stepper.step(unconditional + weight * (prompted - unconditional), step, latents)
            latents = latents.to(engine.dtype)
            times.append(self._now())
        return latents

    def _now(self) -> float:
        wait(self.engine.device)
        return time.perf_counter()

    @torch.no_grad()
    def __call__(self, index: int) -> Sample:
        engine, networks = self.engine, self.engine.networks()
        start = self._now()
        embeds = self._text(networks, ["", prompt_of(index)])
        text = self._now()
        times: list[float] = []
        final = self.latents(embeds, index, times)
        decoding = self._now()
        decode.finish(networks, final / engine.variant.vae.scaling_factor, "uint8")
        end = self._now()
        stages = {
            "text": text - start, "prepare": times[0] - text, "denoise": decoding - times[0], "decode": end - decoding
        }  # fmt: skip
        return Sample(end - start, stages, [b - a for a, b in itertools.pairwise(times)])
