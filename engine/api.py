"""The path of data: a photo and a prompt become a video."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .conditioning import condition
from .decode import finish, first_frames
from .denoise import denoise
from .device_memory import photo_guarded
from .face import Photo
from .identity import Identity
from .noise import draw
from .opening import Opened
from .people import Choice
from .recovery import Run, guarded
from .request import Request
from .schedulers import Stepper
from .video import Video


class ConsisID(Opened):
    """An engine folder, ready to make videos: `open(folder)`, `identify(photo)`, `generate(person, prompt)`."""

    def identify(
        self,
        photo: Photo | Sequence[Photo],
        *,
        face: Choice = "largest",
        aligned: bool = False,
        mode: str = "crop",
        key_points: str = "crop",
    ) -> Identity:
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
        with photo_guarded(self):
            return self.faces.identify(photo, face, aligned, mode, key_points)

    @torch.no_grad()
    def generate(
        self,
        identity: Identity | Photo,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 6.0,
        use_dynamic_cfg: bool | str = False,
        eta: float = 0.0,
        seed: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        output_type: str = "uint8",
        aligned: bool = False,
        cfg: str | None = None,
        decode: str | None = None,
        tile: tuple[int, int] | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 5,
        on_oom: str = "raise",
    ) -> Any:
        """A Video of the person doing what the prompt says; a list of them for a list of prompts. See Request."""
        options = {name: value for name, value in locals().items() if name not in ("self", "identity", "aligned")}
        request = Request.check(self, options)
        return guarded(self, request, lambda run: self._make(run, request, identity, aligned))

    def _make(self, run: Run, request: Request, identity: Identity | Photo, aligned: bool) -> Any:
        final = self._latents(run, request, identity, aligned)
        with run.stage("decode"):
            latents = final / self.variant.vae.scaling_factor
            output_type = request.options["output_type"]
            frames = run.decoded(lambda: finish(run.networks, latents, output_type, *run.decoding))
        videos = Video.several(frames, final, self.variant.fps, run.stats)
        return videos[0] if request.single else videos

    def _latents(self, run: Run, request: Request, identity: Identity | Photo, aligned: bool) -> Tensor:
        """The final latents [b, F, 16, h, w]; what they were conditioned on leaves the device."""
        networks, shape, options, conditioner = run.networks, request.shape, request.options, self.conditioner
        with run.stage("identify"):
            person = identity if isinstance(identity, Identity) else self.faces.identify(identity, aligned=aligned)
            face = conditioner.face(networks, person)
            moments = conditioner.images(networks, person, shape.height, shape.width, run.image_tile)
        self.release_faces()
        with run.stage("text"):
            embeds = request.prompt_embeds(lambda prompts: self.text_encoder(networks, prompts))
        with run.stage("prepare"):
            stepper = Stepper(self.scheduler, options["num_inference_steps"], options["eta"], request.generator)
            self._interrupt, self.num_timesteps = False, len(stepper.timesteps)
            image = first_frames(moments, request.batch, request.generator, shape)
            noise = request.latents(lambda size: draw(size, request.generator, self.device, self.dtype))
            positions = conditioner.positions(shape)
            given = condition(networks, positions, embeds, image * self.image_scale, face)
        with run.stage("denoise"):
            return denoise(
                run.loop, stepper, noise * self.scheduler.init_noise_sigma, embeds, given, positions,
                guidance_scale=options["guidance_scale"], dynamic=options["use_dynamic_cfg"], cfg=run.cfg,
                on_step=request.callback(self), watch=run.watch,
                state=run.resume(embeds, image, noise, person.id_cond, *person.id_vit_hidden), keep=run.keep,
                stop=lambda: self._interrupt,
            )  # fmt: skip
