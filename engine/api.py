"""The path of data: a photo and a prompt become a video."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .conditioning import condition_people
from .decode.image import first_frames
from .denoise import denoise
from .face.extractor import Photo
from .face.identity import Identity
from .face.selection import Choice
from .many.several import Several
from .prediction import Work, alone
from .run.callbacks import step_callback
from .run.frames import decoded
from .run.options import Options
from .run.person import identified, person_of
from .run.recovery import outside_runs, run_with_oom_retry
from .run.request import Request
from .run.run import Run
from .run.settings import settings_of
from .shortcuts import Shortcuts
from .video import Video


class ConsisID(Several):
    """An engine folder, ready to make videos: `open(folder)`, `identify(photo)`, `generate(person, prompt)`.

    It may be used from any thread. Calls that compute take turns at the device in the order in which they come, and
    each gives the bytes that it would give alone. A callback may call it too; that video is made before the outer one
    goes on.
    """

    def identify(self, photo: Photo | Sequence[Photo], *, face: Choice = "largest", aligned: bool = False,
                 mode: str = "crop", key_points: str = "crop") -> Identity:  # fmt: skip
        """The identity features of the person in a photo, for any number of videos; a photo seen before costs nothing.

        Args:
            photo: a path, a PIL image or an array; of several photos of one person the most typical is taken.
            face: who is meant where there are several: "largest", "center", a number from the left, a box, or
                "reference" for diffusers' way, which may mix two people.
            aligned: the photo is an aligned face crop already (FFHQ alignment).
            mode: "crop" shows the model the aligned face on white, "whole" the whole photo.
            key_points: coordinates of the drawn key points: of the crop, or ("reference") of the photo.

        Raises:
            InputError: a photo that cannot be read or used; FaceError when it shows no usable face.
            DeviceMemoryError: out of memory.
        """
        with outside_runs(self, "looking at the photo", "Open the engine with more memory, or give a smaller photo."):
            return self.faces.identify(photo, face, aligned, mode, key_points)

    @torch.no_grad()
    def generate(
        self, identity: Identity | Photo | None = None, prompt: str | Sequence[str] | None = None, *,
        image: Photo | None = None, id_cond: Tensor | None = None, id_vit_hidden: Sequence[Tensor] | None = None,
        kps_cond: Any = None, aligned: bool = False, return_dict: bool = True, height: int | None = None,
        negative_prompt: str | Sequence[str] | None = None, width: int | None = None, num_frames: int | None = None,
        num_inference_steps: int = 50, guidance_scale: float = 6.0, use_dynamic_cfg: bool | str = False,
        num_videos_per_prompt: int = 1, eta: float = 0.0, seed: int | None = None, latents: Tensor | None = None,
        sigmas: Sequence[float] | None = None, generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: Tensor | None = None, negative_prompt_embeds: Tensor | None = None, best_of: str | None = None,
        callback_on_step_end: Callable[..., Mapping[str, Tensor] | None] | None = None, output_type: str = "uint8",
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",), max_sequence_length: int | None = None,
        attention_kwargs: Mapping[str, Any] | None = None, cfg: str | None = None, decode: str | None = None,
        tile: tuple[int, int] | None = None, checkpoint: str | Path | None = None, checkpoint_every: int = 5,
        on_oom: str = "raise", timesteps: Sequence[float] | None = None, seeds: Sequence[int] | None = None,
        shortcuts: Shortcuts | Mapping[str, Any] | None = None, good_enough: float | None = None,
    ) -> Any:  # fmt: skip
        """A Video of the person doing what the prompt says; a list of them for a list of prompts.

        Args:
            identity: the person, or a photo as `identify` takes it.
            image, id_cond, id_vit_hidden, kps_cond: the person as diffusers takes one, instead of `identity`: see
                Identity.from_embeddings; `image` alone is a photo.
            aligned: the photo is an aligned face crop already.
            return_dict: False gives a tuple with what is else returned, as in diffusers.
            seeds: instead of `seed`, a list: a video of each is returned, in their order, or with `best_of` ranked.
            best_of: "identity" puts the video first whose faces are most like the person's by ArcFace (the mean cosine
                over the frames, what `consisid-bench --identity` measures); stats.scores has those of all.
            good_enough: no further video is made once one has this score.

        The others are those of request.Options.

        Raises:
            InputError: an argument that cannot be used.
            MemoryBudgetError: a budget that is too small for this video.
            NumericalError: NaN in the latents.
            DeviceMemoryError: out of memory.
        """
        person = person_of(identity, image, id_cond, id_vit_hidden, kps_cond)
        options = Options(
            prompt, negative_prompt, height, width, num_frames, num_inference_steps, guidance_scale, use_dynamic_cfg,
            num_videos_per_prompt, eta, seed, generator, latents, prompt_embeds, negative_prompt_embeds,
            callback_on_step_end, callback_on_step_end_tensor_inputs, attention_kwargs, max_sequence_length,
            output_type, cfg, decode, tile, checkpoint, checkpoint_every, on_oom, timesteps, sigmas, shortcuts,
        )  # fmt: skip
        made: Any = self.of_seeds(person, options, aligned, seeds, best_of, good_enough)
        if made is None:
            run = Run(self, Request.check(self, options))
            videos = run_with_oom_retry(run, lambda run: alone(self.make(run, [person], aligned)))
            made = videos[0] if run.request.single else videos
        return made if return_dict else (made,)

    def make(self, run: Run, people: Sequence[Identity | Photo], aligned: bool = False) -> Work[list[Video]]:
        """The videos of a run that has begun, see run_with_oom_retry; it stops where a prediction has to be run.

        Args:
            people: one for all videos, or one for each prompt.
        """
        final = yield from self._latents(run, people, aligned)
        with run.stage("decode"):
            frames = decoded(run, final[:, run.request.shape.padding :] / self.variant.vae.scaling_factor)
        return Video.several(frames, final, self.variant.fps, run.stats, settings_of(run))

    def _latents(self, run: Run, who: Sequence[Identity | Photo], aligned: bool) -> Work[Tensor]:
        """The final latents [b, F, 16, h, w], padding included; what they were conditioned on leaves the device."""
        networks, request, shape, conditioner = run.networks, run.request, run.request.shape, self.conditioner
        with run.stage("identify"):
            people = identified(self, networks, who, aligned)
            faces, images = conditioner.people(networks, people, shape.height, shape.width, run.image_tile)
        self.release_faces()
        with run.stage("text"):
            embeds, negative = request.embeds(lambda prompts: self.text_encoder(networks, prompts))
        with run.stage("prepare"):
            videos = [request.batch // len(people)] * len(people)
            image = first_frames(images, videos, request.generator, shape, self.variant.vae)
            noise = request.noise(channels=image.shape[2])
            positions = conditioner.positions(shape)
            given = condition_people(networks, positions, embeds, image, faces, videos)
        with run.stage("denoise"):
            return (yield from denoise(
                run.loop, run.stepper(), noise * run.scheduler.init_noise_sigma, embeds, given, positions,
                on_step=step_callback(run, negative), **run.looping,
                state=run.resume(embeds, image, noise, *(x for each in people for x in each.embeddings)),
            ))  # fmt: skip
