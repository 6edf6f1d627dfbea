"""What a caller asks of generate, checked before anything is computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .decode import MODES, OUTPUT_TYPES
from .denoise import CFG_MODES
from .errors import InputError, shown
from .noise import generators
from .shapes import VideoShape, whole
from .text import check_prompt, check_unicode
from .tiling import check_reference, check_tile

if TYPE_CHECKING:
    from .opening import Opened

VIDEO_SIZES = ("height", "width", "num_frames")
CALLBACK_TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")


@dataclass
class Request:
    """The arguments of ConsisID.generate; the names are those of diffusers' ConsisIDPipeline.

    prompt: a text, or a list for several videos of one person. Either it or prompt_embeds [b, T, d_model].
    negative_prompt: what to steer away from; a text for all, or one per prompt. Used when guidance_scale > 1.
    height, width, num_frames: of the video; default what the engine was built for.
    num_inference_steps: denoising steps.
    guidance_scale: weight of the prompt; 1 or less runs without classifier-free guidance, at half the cost.
    use_dynamic_cfg: True for diffusers' formula of a changing weight, "step" for the one that was meant.
    eta: of DDIM.
    seed: of a generator on the CPU: the same video on every machine. Or a generator, or a list with one per video.
    latents: noise [b, F, 16, h, w] instead of drawn noise.
    callback_on_step_end: called as (engine, step, timestep, tensors) after each step; the tensors that it returns
        replace those of the run. A diffusers PipelineCallback says by itself which tensors it gets, and
        `engine._interrupt = True` ends the loop after the step, as in diffusers.
    callback_on_step_end_tensor_inputs: which tensors it gets, of latents, prompt_embeds, negative_prompt_embeds.
    output_type: "uint8", "np", "pt", "pil", "stream" or "latent"; see Video. A run with "stream" lasts until its frames
        have been read, or the iterator is closed: on_oom and checkpoint hold till then.
    decode: None for whole frames, or tiles where the plan of the memory has them; "whole"; "tiled", in less memory and
        with a small error; "exact", in as little without one, but slow: its maps go through host memory, 194 GB there
        and back at the preview model's size (exact.host_bytes); "tiled-reference", as diffusers has it after
        vae.enable_tiling(), for the image's encoding too, frames that are too wide included.
    tile: of the last three: height and width of a tile in latent pixels; default that of the plan, else half of the
        trained size.
    cfg: "batched" or "sequential"; None leaves it to the plan of the memory, "batched" without one.
    on_oom: when the device runs out of memory, "raise", or "replan": go on with the next smaller plan from the last
        finished step.
    checkpoint: a file that holds the last finished steps, written every `checkpoint_every` steps, whole or not at all.
        Where it exists and is of the same request, the run goes on from it; a finished run removes it.
    """

    shape: VideoShape
    batch: int
    guided: bool
    generator: torch.Generator | list[torch.Generator]
    options: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    single: bool
    _negative: Tensor | None = None

    @classmethod
    def check(cls, engine: "Opened", options: Mapping[str, Any]) -> "Request":
        """A request that can be run.

        Raises:
            InputError: one sentence naming the argument, what is wrong and what would do.
        """
        variant, prompt, given = engine.variant, options["prompt"], options["prompt_embeds"]
        sizes = {n: getattr(engine.shape, n) if options[n] is None else options[n] for n in VIDEO_SIZES}
        shape = VideoShape.of(variant, **sizes)
        if (prompt is None) == (given is None):
            raise InputError("Give either a prompt or prompt_embeds, one of the two.")
        if options["negative_prompt"] is not None and options["negative_prompt_embeds"] is not None:
            raise InputError("Give either a negative_prompt or negative_prompt_embeds, not both.")
        if prompt is not None and options["negative_prompt_embeds"] is not None:
            raise InputError("negative_prompt_embeds go with prompt_embeds; with a prompt give a negative_prompt.")
        for name in ("prompt_embeds", "negative_prompt_embeds", "latents"):
            if not isinstance(options[name], Tensor | None):
                raise InputError(f"{name} has to be a torch.Tensor, this is {type(options[name]).__name__}.")
        batch = given.shape[0] if prompt is None else len(check_prompt(prompt))
        for name in ("num_inference_steps", "checkpoint_every"):
            if whole(name, options[name]) < 1:
                raise InputError(f"{name}={options[name]!r} has to be at least 1.")
        steps, most = options["num_inference_steps"], engine.scheduler.config.get("num_train_timesteps")
        if most is not None and steps > most:
            raise InputError(f"num_inference_steps={shown(steps)} is more than {most}, all that the model has.")
        for name in ("guidance_scale", "eta"):
            value = options[name]
            if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
                raise InputError(f"{name}={value!r} is not a finite number.")
        if options["output_type"] not in (*OUTPUT_TYPES, "latent"):
            raise InputError(f"output_type={options['output_type']!r} is none of {', '.join(OUTPUT_TYPES)}, latent.")
        if options["cfg"] not in (None, *CFG_MODES):
            raise InputError(f"cfg={options['cfg']!r} is none of {', '.join(CFG_MODES)}.")
        if options["on_oom"] not in ("raise", "replan"):
            raise InputError(f"on_oom={options['on_oom']!r} is none of raise, replan.")
        if options["use_dynamic_cfg"] not in (False, True, "step"):
            raise InputError(f'use_dynamic_cfg={options["use_dynamic_cfg"]!r} is none of False, True, "step".')
        if options["decode"] not in (None, *MODES):
            raise InputError(f"decode={options['decode']!r} is none of {', '.join(MODES)}.")
        if options["tile"] is not None and options["decode"] in (None, "whole"):
            raise InputError(f'tile={options["tile"]!r} goes with decode="tiled", "exact" or "tiled-reference".')
        tile = check_tile(options["tile"], variant.vae)
        if options["decode"] == "tiled-reference":
            check_reference(shape, tile, variant.vae.spatial_ratio)
        unknown = [name for name in _wanted(options) if name not in CALLBACK_TENSORS]
        if unknown:
            raise InputError(f"Callbacks cannot have {', '.join(unknown)}; there are {', '.join(CALLBACK_TENSORS)}.")
        negative = options["negative_prompt"]
        texts = negative if isinstance(negative, list | tuple) else [negative]
        if not all(isinstance(text, str | None) for text in texts):
            raise InputError(f"negative_prompt={shown(negative)} is neither a text nor a list of texts.")
        for text in filter(None, texts):
            check_unicode("negative_prompt", text)
        if isinstance(negative, list | tuple) and len(negative) != batch:
            raise InputError(f"{len(negative)} negative prompts were given for {batch} prompts; give one, or one each.")
        request = cls(
            shape, batch, options["guidance_scale"] > 1.0,
            generators(options["seed"], options["generator"], batch), options, engine.device, engine.dtype,
            single=not isinstance(prompt, list | tuple) and batch == 1,
        )  # fmt: skip
        request._check_tensors(engine)
        return request

    def _check_tensors(self, engine: "Opened") -> None:
        config, shape = engine.variant.transformer, self.shape
        text = (self.batch, config.max_text_seq_length, config.text_embed_dim)
        noise = (
            self.batch, shape.latent_frames, engine.variant.vae.latent_channels, shape.latent_height, shape.latent_width
        )  # fmt: skip
        for name, expected in (("prompt_embeds", text), ("negative_prompt_embeds", text), ("latents", noise)):
            tensor = self.options[name]
            if tensor is not None and tuple(tensor.shape) != expected:
                raise InputError(
                    f"{name} has the shape {list(tensor.shape)}; for this video it has to be {list(expected)}."
                )

    def prompt_embeds(self, encode: Callable[[Sequence[str]], Tensor]) -> Tensor:
        """[G * b, T, d_model]: with guidance the negative ones come first."""
        options = self.options
        embeds = options["prompt_embeds"]
        embeds = encode(check_prompt(options["prompt"])) if embeds is None else self._here(embeds)
        if not self.guided:
            return embeds
        negative = options["negative_prompt_embeds"]
        if negative is None:
            texts = options["negative_prompt"] or ""
            negative = encode([texts] * self.batch if isinstance(texts, str) else list(texts))
        self._negative = self._here(negative)
        return torch.cat((self._negative, embeds))

    def latents(self, draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """Noise [b, F, 16, h, w]: the caller's, or drawn."""
        if self.options["latents"] is not None:
            return self._here(self.options["latents"])
        shape = self.shape
        return draw((self.batch, shape.latent_frames, self._channels, shape.latent_height, shape.latent_width))

    _channels: int = 16

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)

    def callback(self, engine: Any) -> Callable[[int, Any, dict[str, Tensor]], dict[str, Tensor]] | None:
        """The caller's callback in the form that the loop calls."""
        function, wanted = self.options["callback_on_step_end"], _wanted(self.options)
        if function is None:
            return None

        def call(step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            # As in diffusers, prompt_embeds are those of both halves, and the negative ones are no longer read.
            known = {**tensors, "negative_prompt_embeds": self._negative}
            replaced = function(engine, step, timestep, {name: known[name] for name in wanted}) or {}
            for name, tensor in tensors.items():
                new = replaced.get(name, tensor)
                if not isinstance(new, Tensor) or new.shape != tensor.shape:
                    shape = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
                    raise InputError(
                        f"The callback returned {name} of {shape} after step {step + 1}; it has to be a tensor of "
                        f"{list(tensor.shape)}."
                    )
            return replaced

        return call


def may_tile(request: Request) -> bool:
    """Whether a plan of the memory may cut the decoder into tiles: unless the caller wants whole frames."""
    return request.options["decode"] != "whole"


def _wanted(options: Mapping[str, Any]) -> Sequence[str]:
    """The tensors that a callback gets; diffusers' PipelineCallback names them itself."""
    function = options["callback_on_step_end"]
    return getattr(function, "tensor_inputs", None) or options["callback_on_step_end_tensor_inputs"] or ()
