"""What a caller's callback sees of a run, and what it may change: in the names of diffusers' pipelines."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import InputError, shown
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

    @property
    def attention_kwargs(self) -> Mapping[str, Any] | None:
        return self._run.options.attention_kwargs

    @property
    def _attention_kwargs(self) -> Mapping[str, Any] | None:
        return self._run.options.attention_kwargs


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
        known = {**tensors, "negative_prompt_embeds": negative}
        returned = function(pipeline, step, timestep, {name: known[name] for name in wanted})
        run.enter()  # it may have made a video of its own
        return {name: _checked(name, returned, tensor, step) for name, tensor in tensors.items()}

    return call


def _checked(name: str, returned: Any, tensor: Tensor, step: int) -> Tensor:
    """The tensor that goes on under a name: what the callback returned, on the run's device and in its dtype."""
    if not isinstance(returned, Mapping | None):
        raise InputError(
            f"The callback returned {shown(returned)} after step {step + 1}; it has to be a dict of tensors."
        )
    new = (returned or {}).get(name, tensor)
    if not isinstance(new, Tensor) or new.shape != tensor.shape or not new.is_floating_point():
        given = type(new).__name__
        if isinstance(new, Tensor):
            given = f"{list(new.shape)}" + ("" if new.is_floating_point() else f" in {new.dtype}")
        raise InputError(
            f"The callback returned {name} of {given} after step {step + 1}; it has to be a tensor of "
            f"{list(tensor.shape)} in floating point."
        )
    return new.to(tensor.device, tensor.dtype)
