"""What a caller's callback sees of a run, and what it may change: in the names of diffusers' pipelines."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, shown
from ..util.parsing import has_numbers
from .options import is_finite

if TYPE_CHECKING:
    from .run import Run

OnStep = Callable[[int, Any, dict[str, Tensor]], dict[str, Tensor]]


class RunPipeline:
    """The pipeline that a callback gets: the engine, with what belongs to one run in the names of diffusers.

    `scheduler` is the run's own copy. What else is set is kept for the callbacks of this run, and nothing of it
    reaches the engine.
    """

    def __init__(self, run: "Run"):
        self._run = run

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_run" not in vars(self):
            raise AttributeError(name)
        return getattr(self._run.engine, name)

    @property
    def scheduler(self) -> Any:
        return self._run.scheduler

    @scheduler.setter
    def scheduler(self, value: Any) -> None:
        raise InputError(
            "The callback set a scheduler, and a run keeps the one that it began with; change what pipeline.scheduler "
            "has, or give the engine another one before the next video."
        )

    @property
    def guidance_scale(self) -> float:
        return self._run.guidance_scale

    @property
    def _guidance_scale(self) -> float:
        return self._run.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, value: float) -> None:
        if not is_finite(value):
            raise InputError(f"The callback set _guidance_scale to {shown(value)}, which is not a finite number.")
        self._run.guidance_scale = float(value)

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._run.request.guided

    @property
    def interrupt(self) -> bool:
        return self._run.interrupt

    @property
    def _interrupt(self) -> bool:
        return self._run.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        self._run.interrupt = bool(value)

    @property
    def num_timesteps(self) -> int:
        return self._run.num_timesteps

    @property
    def _num_timesteps(self) -> int:
        return self._run.num_timesteps

    @_num_timesteps.setter
    def _num_timesteps(self, value: int) -> None:
        self._run.num_timesteps = value  # as in diffusers it is told, and the loop does not ask

    @property
    def attention_kwargs(self) -> Mapping[str, Any] | None:
        return self._run.attention_kwargs

    @property
    def _attention_kwargs(self) -> Mapping[str, Any] | None:
        return self._run.attention_kwargs

    @_attention_kwargs.setter
    def _attention_kwargs(self, value: Mapping[str, Any] | None) -> None:
        self._run.attention_kwargs = value  # as in diffusers what the loop began with stays


def step_callback(run: "Run", negative: Tensor | None) -> OnStep | None:
    """The caller's callback as the loop calls it; None without one.

    Args:
        negative: embeddings [b, T, d_model]. As in diffusers, prompt_embeds are those of both halves, and the negative
            ones are no longer read.
    """
    function, wanted = run.options.callback_on_step_end, run.options.callback_tensors
    if function is None:
        return None
    pipeline = RunPipeline(run) if run.view is None else run.view

    def call(step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        known, shapes = {**tensors, "negative_prompt_embeds": negative}, {n: t.shape for n, t in tensors.items()}
        returned = function(pipeline, step, timestep, {name: known[name] for name in wanted})
        run.enter()  # it may have made a video of its own
        return {name: _checked(name, returned, tensor, shapes[name], step) for name, tensor in tensors.items()}

    return call


def _checked(name: str, returned: Any, tensor: Tensor, shape: torch.Size, step: int) -> Tensor:
    """The tensor that goes on under a name: what the callback returned, on the run's device and in its dtype.

    Args:
        tensor: what the callback was given, and may have changed.
        shape: that it had before.
    """
    if not isinstance(returned, Mapping | None):
        raise InputError(
            f"The callback returned {shown(returned)} after step {step + 1}; it has to be a dict of tensors."
        )
    new = (returned or {}).get(name, tensor)
    if not isinstance(new, Tensor) or new.shape != shape or not has_numbers(new):
        given = type(new).__name__
        if isinstance(new, Tensor):
            kind = f" in {new.dtype}" if not new.is_floating_point() else f" ({new.layout}, on {new.device})"
            given = f"{list(new.shape)}" + ("" if has_numbers(new) else kind)
        raise InputError(
            f"The callback returned {name} of {given} after step {step + 1}; it has to be a tensor of {list(shape)} in "
            "floating point, in memory."
        )
    return new.to(tensor.device, tensor.dtype)
