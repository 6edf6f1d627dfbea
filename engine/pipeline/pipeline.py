"""diffusers' ConsisIDPipeline over an engine: one import is changed, and everything else of a script is kept."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.loaders import CogVideoXLoraLoaderMixin
from diffusers.pipelines.consisid.pipeline_output import ConsisIDPipelineOutput
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from ..decode.frames import decode_chunks
from ..decode.image import encode_image, first_frames
from ..errors import InputError, shown
from ..face.identity import Identity
from ..prediction import alone
from ..run.options import Options
from ..run.recovery import outside_runs, run_with_oom_retry
from ..run.request import Request
from ..run.run import Run
from ..sampling import draw
from ..shapes import VideoShape
from ..video import Video
from .compiled import Compiling
from .inputs import people_of
from .loras import EngineLoras
from .offload import Offloading
from .parts import TEXT_LENGTH
from .state import RunState

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class ConsisIDPipeline(Compiling, Offloading, RunState, EngineLoras, DiffusionPipeline, CogVideoXLoraLoaderMixin):
    """Identity-preserving video from an image and a prompt, with the names, arguments and results of diffusers.

    Made from components in memory, whose tensors are the engine's weights then and are not copied; from a checkpoint
    or from an engine folder by `from_pretrained`. `compile` makes an engine folder of it and goes on with that.

    Args:
        tokenizer, text_encoder, vae, transformer, scheduler: as diffusers' ConsisIDPipeline takes them. Parts that a
            call does not need may be None.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = []
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(self, tokenizer: Any, text_encoder: Any, vae: Any, transformer: Any, scheduler: Any):
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
        )
        config = vae.config if vae is not None else None
        self.vae_scale_factor_spatial = 2 ** (len(config.block_out_channels) - 1) if config else 8
        self.vae_scale_factor_temporal = config.temporal_compression_ratio if config else 4
        self.vae_scaling_factor_image = config.scaling_factor if config else 0.7
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor_spatial)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int = 480,
        width: int = 720,
        num_frames: int = 49,
        num_inference_steps: int = 50,
        guidance_scale: float = 6.0,
        use_dynamic_cfg: bool = False,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., Any] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006, as diffusers has it
        max_sequence_length: int = TEXT_LENGTH,
        id_vit_hidden: Any = None,
        id_cond: Any = None,
        kps_cond: Any = None,
    ) -> Any:
        """ConsisIDPipelineOutput with `frames`, or a tuple with them; the arguments are diffusers'. What is more:

        Args:
            image: a path, bytes or an array too. Without id_cond and id_vit_hidden it is a photo in which the engine
                finds the face, where the checkpoint has the face models. A list is of as many people.
            id_cond, id_vit_hidden, kps_cond: of one person, or of as many as there are images or prompts.
            num_videos_per_prompt: counts; each video begins with noise of its own.
            use_dynamic_cfg: True for diffusers' formula, "step" for the one that was meant.
            generator: a list has one generator per video.
            latents, prompt_embeds, negative_prompt_embeds: of any dtype.

        Raises:
            InputError, a ValueError: an argument that cannot be used. Others: see ConsisID.generate.
        """
        height, width, num_frames = (
            value or own for value, own in zip((height, width, num_frames), self._trained_size(), strict=True)
        )
        self.check_inputs(
            image, prompt, height, width, negative_prompt, callback_on_step_end_tensor_inputs, latents, prompt_embeds,
            negative_prompt_embeds,
        )  # fmt: skip
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type={shown(output_type)} is none of {', '.join(OUTPUT_TYPES)}.")
        people = people_of(
            image, id_cond, id_vit_hidden, kps_cond, self.video_processor, height, width,
            self.transformer.config.get("is_train_face", True),
        )  # fmt: skip
        engine = self.engine_for(max_sequence_length, photos=not all(isinstance(each, Identity) for each in people))
        options = Options(
            prompt, negative_prompt, height, width, num_frames, num_inference_steps, guidance_scale, use_dynamic_cfg,
            num_videos_per_prompt, eta, None, generator, latents, prompt_embeds, negative_prompt_embeds,
            callback_on_step_end, callback_on_step_end_tensor_inputs, attention_kwargs, None, output_type,
            decode=self.decode_mode,
        )  # fmt: skip
        request = Request.check(engine, _for_people(options, len(people)), as_reference=True)
        budget = self._budget(engine, request.shape, request.batch, num_inference_steps, request.guided)
        run = Run(engine, request, view=self, memory=budget)
        with self._shows(run), self.progress_bar(total=num_inference_steps) as bar:
            run.progress = lambda step: bar.update() if (step + 1) % run.scheduler.order == 0 else None
            videos = run_with_oom_retry(run, lambda run: alone(engine.make(run, people)))
            self.stats = videos[0].stats
        _say_frames(num_frames, videos)
        frames = _together(videos, output_type, engine.device)
        return ConsisIDPipelineOutput(frames=frames) if return_dict else (frames,)

    def check_inputs(
        self, image: Any, prompt: Any, height: int, width: int, negative_prompt: Any,
        callback_on_step_end_tensor_inputs: Any, latents: Any = None, prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
    ) -> None:  # fmt: skip
        """Whether these arguments of a call can be used together.

        Raises:
            InputError, a ValueError: one sentence naming the argument, what is wrong and what would do.
        """
        if image is None:
            raise InputError("There is no image; give one, or a list of them.")
        if prompt is not None and not isinstance(prompt, str | list):
            raise InputError(f"prompt={shown(prompt)} is neither a text nor a list of texts.")
        Options(
            prompt, negative_prompt, prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            latents=latents, callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        ).check()  # fmt: skip
        if prompt_embeds is not None and negative_prompt_embeds is not None:
            shapes = [list(embeds.shape) for embeds in (prompt_embeds, negative_prompt_embeds)]
            if shapes[0] != shapes[1]:
                raise InputError(f"prompt_embeds has the shape {shapes[0]} and negative_prompt_embeds {shapes[1]}.")
        VideoShape.of(self._variant, height, width, None)

    def encode_prompt(
        self, prompt: str | list[str] | None, negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True, num_videos_per_prompt: int = 1, prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None, max_sequence_length: int = TEXT_LENGTH,
        device: torch.device | None = None, dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Embeddings [b * num_videos_per_prompt, T, d_model] of the prompts and of the negative ones, None without
        guidance; those that are given are given back.

        Raises:
            InputError: negative prompts that are not as many as the prompts.
        """

        def encode(texts: Sequence[str]) -> Tensor:
            engine = self.engine_for(max_sequence_length)
            with outside_runs(engine, "encoding the prompt", "Enable a memory saver.", self._budget(engine)):
                embeds = engine.text_encoder(engine.networks(), texts)
            embeds = embeds.repeat_interleave(num_videos_per_prompt, dim=0)
            return embeds.to(device or engine.device, dtype or embeds.dtype)

        if prompt_embeds is None:
            if prompt is None:
                raise InputError("Give either a prompt or prompt_embeds, one of the two.")
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            batch, prompt_embeds = len(prompts), encode(prompts)
        else:
            batch = len(prompt_embeds)
        if not do_classifier_free_guidance or negative_prompt_embeds is not None:
            return prompt_embeds, negative_prompt_embeds
        Options("", negative_prompt).check_negative(batch)
        texts = negative_prompt or ""
        return prompt_embeds, encode([texts] * batch if isinstance(texts, str) else texts)

    def prepare_latents(
        self, image: Tensor, batch_size: int = 1, num_channels_latents: int = 16, num_frames: int = 13,
        height: int = 60, width: int = 90, dtype: torch.dtype | None = None, device: torch.device | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None, latents: Tensor | None = None,
        kps_cond: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Noise, and latents that begin with those of the image, each [batch_size, F, 16, h, w].

        Args:
            image, kps_cond: [n, 3, H, W] in [-1, 1]; n is 1 or batch_size.
            height, width, num_frames: of the video, in pixels and frames.

        Raises:
            InputError: another number of generators than of videos.
        """
        if isinstance(generator, list) and len(generator) != batch_size:
            raise InputError(f"{len(generator)} generators were given for {batch_size} videos; give one each.")
        engine = self.engine
        shape = VideoShape.of(engine.variant, height, width, num_frames, any_frames=True)
        networks = engine.networks(shape)
        kinds = [each for each in (image, kps_cond) if each is not None]
        with outside_runs(engine, "encoding the image", "Enable a memory saver.", self._budget(engine, shape)):
            moments = [
                [encode_image(networks, each[i : i + 1], height, width) for each in kinds] for i in range(len(image))
            ]
            own = dtype or engine.dtype
            videos = [batch_size // len(image)] * len(image)
            begin = first_frames(moments, videos, generator, shape, engine.variant.vae)
            if shape.padding:
                # Asked for frames that the caller has not padded, which a call never does, the reference repeats the
                # image in front.
                begin = torch.cat((begin[:, : shape.padding], begin[:, : -shape.padding]), dim=1)
            size = batch_size, shape.loop_frames, num_channels_latents, shape.latent_height, shape.latent_width
            noise = latents if latents is not None else draw(size, generator, engine.device, own)
        where = device or engine.device
        return (noise * self.scheduler.init_noise_sigma).to(where, own), begin.to(where, own)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Frames [b, 3, F, H, W] in [-1, 1], of latents [b, F, 16, h, w] as `output_type="latent"` gives them; where a
        model pads these (ConsisID-1.5), without the padding in front."""
        engine, ratio = self.engine, self.vae_scale_factor_spatial
        count, _, height, width = latents.shape[1:]
        frames = (count - 1) * self.vae_scale_factor_temporal + 1
        shape = VideoShape.of(engine.variant, height * ratio, width * ratio, frames, any_frames=True)
        networks = engine.networks(shape)
        given = (latents / self.vae_scaling_factor_image).to(engine.device, engine.dtype)
        with outside_runs(engine, "decoding", "Enable vae tiling.", self._budget(engine, shape)):
            videos = [torch.cat(list(decode_chunks(networks, video[None]))) for video in given]
        return torch.stack(videos).transpose(1, 2)

    def fuse_qkv_projections(self) -> None:
        """Nothing changes: q, k and v are one product of the engine anyway."""

    def unfuse_qkv_projections(self) -> None:
        """Nothing changes; see fuse_qkv_projections."""

    def get_timesteps(
        self, num_inference_steps: int, timesteps: Tensor, strength: float, device: Any
    ) -> tuple[Tensor, int]:
        """The timesteps that are left when noise of `strength` was added to finished latents, and how many."""
        first = max(num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps), 0)
        return timesteps[first * self.scheduler.order :], num_inference_steps - first

    def prepare_extra_step_kwargs(self, generator: Any, eta: float) -> dict[str, Any]:
        """Of eta and generator, those that the scheduler's step takes."""
        accepted = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}

    def _trained_size(self) -> tuple[int, int, int]:
        ratio, config = self.vae_scale_factor_spatial, self.transformer.config
        return config.sample_height * ratio, config.sample_width * ratio, config.sample_frames


def _for_people(options: Options, people: int) -> Options:
    """A prompt for each person, where one was given for all."""
    if people == 1:
        return options
    prompt, embeds, negative = options.prompt, options.prompt_embeds, options.negative_prompt_embeds
    count = 1 if isinstance(prompt, str) else len(embeds if embeds is not None else prompt or "")
    if count == people:
        return options
    if count != 1:
        raise InputError(f"{count} prompts were given for {people} people; give one for all, or as many.")
    if prompt is not None:
        return replace(options, prompt=[*([prompt] if isinstance(prompt, str) else prompt)] * people)
    both = [None if each is None else each.expand(people, -1, -1) for each in (embeds, negative)]
    return replace(options, prompt_embeds=both[0], negative_prompt_embeds=both[1])


def _say_frames(asked: int, videos: Sequence[Video]) -> None:
    """Warn where a video has another number of frames than was asked for."""
    made = videos[0].shape[0] if videos[0].shape is not None else asked
    if made != asked:
        warnings.warn(f"num_frames={asked} gave {made} frames: the decoder makes 8k + 1, or 8k.", stacklevel=3)


def _together(videos: Sequence[Video], output_type: str, device: torch.device) -> Any:
    """Frames or latents of a batch as diffusers gives them."""
    if output_type == "latent":
        return torch.stack([video.latents for video in videos if video.latents is not None])
    frames = [video.frames for video in videos]
    if output_type == "pil":
        return frames
    return np.stack(frames) if output_type == "np" else torch.stack(frames).to(device)
