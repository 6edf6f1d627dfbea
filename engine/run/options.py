"""The arguments of generate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..decode.frames import MODES, OUTPUT_TYPES
from ..denoise import CFG_MODES
from ..errors import InputError, shown
from ..shapes import whole
from ..shortcuts import Shortcuts
from ..text import check_unicode
from ..util.files import as_path
from ..util.parsing import has_numbers

EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds")
CALLBACK_TENSORS = ("latents", *EMBEDDINGS)
MOST_VIDEOS = 64  # of a prompt


@dataclass(frozen=True)
class Options:
    """The arguments of ConsisID.generate besides the person; the names are those of diffusers' ConsisIDPipeline.

    prompt, prompt_embeds: a text, or a list for several videos of one person; or embeddings [b, T, d_model] instead.
    negative_prompt, negative_prompt_embeds: what to steer away from; a text for all, or one per
        prompt. Used when guidance_scale > 1.
    height, width, num_frames: of the video; default what the engine was built for.
    num_inference_steps: denoising steps.
    timesteps, sigmas: the steps to go through instead, one of the two, where the scheduler takes them.
    guidance_scale: weight of the prompt; 1 or less runs without classifier-free guidance, at half the cost.
    use_dynamic_cfg: True for diffusers' formula of a changing weight, "step" for the one that was meant.
    num_videos_per_prompt: so many videos of each prompt, each from noise of its own.
    eta: of DDIM.
    seed, generator: a seed of a generator on the CPU: the same video on every machine. Or a generator, or a list with
        one per video.
    latents: noise [b, F, 16, h, w] instead of drawn noise.
    callback_on_step_end: called as (pipeline, step, timestep, tensors) after each step; the tensors that it returns
        replace those of the run. `pipeline` is this engine with the state of this run (callbacks.py), under the
        names of diffusers: `pipeline._guidance_scale = 1.0` counts from the next step on, `pipeline._interrupt = True`
        ends the loop. A diffusers PipelineCallback says by itself which tensors it gets.
    callback_on_step_end_tensor_inputs: which tensors it gets, of latents, prompt_embeds, negative_prompt_embeds.
    attention_kwargs: None, or {"scale": number}, which the weights of the active LoRAs that are not fused are
        multiplied with in this run.
    max_sequence_length: tokens of text; None, or the number that the model was trained with.
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
    shortcuts: what may be left out of the loop, see Shortcuts; by default nothing.
    checkpoint, checkpoint_every: a file that holds the last finished steps, written every `checkpoint_every` steps,
        whole or not at all. Where it exists and is of the same request, the run goes on from it; a finished run
        removes it.
    """

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 6.0
    use_dynamic_cfg: bool | str = False
    num_videos_per_prompt: int = 1
    eta: float = 0.0
    seed: int | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    latents: Tensor | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    callback_on_step_end: Callable[..., Mapping[str, Tensor] | None] | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",)
    attention_kwargs: Mapping[str, Any] | None = None
    max_sequence_length: int | None = None
    output_type: str = "uint8"
    cfg: str | None = None
    decode: str | None = None
    tile: tuple[int, int] | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int = 5
    on_oom: str = "raise"
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    shortcuts: Shortcuts | Mapping[str, Any] | None = None

    @property
    def callback_tensors(self) -> Sequence[str]:
        """The tensors that the callback gets; diffusers' PipelineCallback names them itself."""
        own = getattr(self.callback_on_step_end, "tensor_inputs", None)
        asked = self.callback_on_step_end_tensor_inputs
        return own if own is not None else () if asked is None else asked

    @property
    def schedule(self) -> dict[str, list[float]]:
        """What the caller gave in the place of num_inference_steps, see sampling.set_schedule."""
        given = {"timesteps": self.timesteps, "sigmas": self.sigmas}
        return {name: list(values) for name, values in given.items() if values is not None}

    @property
    def left_out(self) -> Shortcuts:
        """`shortcuts` as what they mean."""
        return Shortcuts.of(self.shortcuts)

    @property
    def lora_scale(self) -> float:
        return (self.attention_kwargs or {}).get("scale", 1.0)

    def check(self) -> None:
        """Everything that depends on no engine.

        Raises:
            InputError: one sentence naming the argument, what is wrong and what would do.
        """
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise InputError("Give either a prompt or prompt_embeds, one of the two.")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise InputError("Give either a negative_prompt or negative_prompt_embeds, not both.")
        if self.prompt is not None and self.negative_prompt_embeds is not None:
            raise InputError("negative_prompt_embeds go with prompt_embeds; with a prompt give a negative_prompt.")
        for name in (*EMBEDDINGS, "latents"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Tensor) and has_numbers(value)):
                wanted, kind = "", type(value).__name__
                if isinstance(value, Tensor):
                    wanted, kind = " of floats in memory", f"{value.dtype} ({value.layout}, on {value.device})"
                raise InputError(f"{name} has to be a torch.Tensor{wanted}, this is {kind}.")
        for name in ("num_inference_steps", "checkpoint_every", "num_videos_per_prompt"):
            if whole(name, getattr(self, name)) < 1:
                raise InputError(f"{name}={shown(getattr(self, name))} has to be at least 1.")
        if self.num_videos_per_prompt > MOST_VIDEOS:
            raise InputError(f"num_videos_per_prompt={shown(self.num_videos_per_prompt)} is more than {MOST_VIDEOS}.")
        for name in ("guidance_scale", "eta"):
            if not is_finite(getattr(self, name)):
                raise InputError(f"{name}={shown(getattr(self, name))} is not a finite number.")
        choices = {
            "output_type": (*OUTPUT_TYPES, "latent"),
            "cfg": (None, *CFG_MODES),
            "on_oom": ("raise", "replan"),
            "use_dynamic_cfg": (False, True, "step"),
            "decode": (None, *MODES),
        }
        for name, known in choices.items():
            given = getattr(self, name)
            if not any(given is each or (isinstance(given, str) and given == each) for each in known):
                listed = ", ".join(each if isinstance(each, str) else repr(each) for each in known if each is not None)
                raise InputError(f"{name}={shown(given)} is none of {listed}.")
        if self.tile is not None and self.decode in (None, "whole"):
            raise InputError(f'tile={shown(self.tile)} goes with decode="tiled", "exact" or "tiled-reference".')
        if self.checkpoint is not None:
            as_path(self.checkpoint)
        if self.left_out.first_block and self.checkpoint is not None:
            raise InputError("With first_block a run cannot go on from a step; leave out the checkpoint, or use cache.")
        self._check_callback()
        self._check_attention()
        self._check_schedule()

    def _check_callback(self) -> None:
        if not (self.callback_on_step_end is None or callable(self.callback_on_step_end)):
            raise InputError(f"callback_on_step_end={shown(self.callback_on_step_end)} is no function.")
        wanted = self.callback_tensors
        if not isinstance(wanted, list | tuple) or not all(isinstance(name, str) for name in wanted):
            raise InputError(f"callback_on_step_end_tensor_inputs={shown(wanted)} is no list of names.")
        unknown = [name for name in wanted if name not in CALLBACK_TENSORS]
        if unknown:
            raise InputError(f"Callbacks cannot have {', '.join(unknown)}; there are {', '.join(CALLBACK_TENSORS)}.")

    def _check_schedule(self) -> None:
        for name in ("timesteps", "sigmas"):
            given = getattr(self, name)
            if given is not None and not (isinstance(given, list | tuple) and given and all(map(is_finite, given))):
                raise InputError(f"{name}={shown(given)} is no list of numbers.")
        if self.timesteps is not None and self.sigmas is not None:
            raise InputError("Both timesteps and sigmas were given; give one of them.")

    def _check_attention(self) -> None:
        given = self.attention_kwargs
        if given is None:
            return
        if not isinstance(given, Mapping) or not set(given) <= {"scale"} or not is_finite(given.get("scale", 1.0)):
            raise InputError(
                f'attention_kwargs={shown(given)} cannot be used; it may be {{"scale": number}}, the weight of the '
                "LoRAs in this run, and nothing else."
            )

    def check_negative(self, batch: int) -> None:
        """Raises InputError for negative prompts that are no texts, or not as many as the prompts."""
        negative = self.negative_prompt
        texts = negative if isinstance(negative, list | tuple) else [negative]
        if not all(isinstance(text, str | None) for text in texts):
            raise InputError(f"negative_prompt={shown(negative)} is neither a text nor a list of texts.")
        for text in filter(None, texts):
            check_unicode("negative_prompt", text)
        if isinstance(negative, list | tuple) and len(negative) != batch:
            raise InputError(f"{len(negative)} negative prompts were given for {batch} prompts; give one, or one each.")


def is_finite(value: Any) -> bool:
    """Whether something is a number, and neither infinite nor NaN."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
