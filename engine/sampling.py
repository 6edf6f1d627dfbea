"""Noise, and diffusers' schedulers behind one step function; these are imported when an engine first needs one."""

import copy
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError, InputError, shown
from .shapes import whole
from .util.parsing import Unreadable, read_object, shorten

PREDICTIONS = ("epsilon", "v_prediction", "sample", None)  # what diffusers' schedulers make of an output
LARGEST = 1_000_000  # number in a scheduler's configuration: steps of training are 1000


def load_scheduler(folder: Path) -> Any:
    """The scheduler of a checkpoint's scheduler/ folder: CogVideoXDPMScheduler in the official ones.

    Raises:
        CheckpointError: no configuration, a damaged one, or a class that diffusers does not have.
    """
    import diffusers

    file = folder / "scheduler_config.json"
    try:
        config = read_object(file, finite=False)  # diffusers writes -Infinity
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; the checkpoint is incomplete.") from None
    except Unreadable as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download it again.") from None
    name = config.get("_class_name")
    cls: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(cls, type) or not issubclass(cls, diffusers.SchedulerMixin):
        raise CheckpointError(f"{file} names the scheduler {shown(name)}, which diffusers does not have.")
    # from_config imports every scheduler that could read the same configuration, and scipy with them: half a second.
    accepted = inspect.signature(cls).parameters
    try:
        check_settings(config)
        scheduler = cls(**{name: value for name, value in config.items() if name in accepted})
        # What another scheduler may be made from: keys of its own, and the name of this class.
        scheduler.register_to_config(**{name: value for name, value in config.items() if name not in accepted})
        copy.deepcopy(scheduler).set_timesteps(2)
    except Exception as error:  # diffusers' classes raise whatever they trip over
        raise CheckpointError(f"{file} cannot be used ({shorten(error)}); download it again.") from None
    return scheduler


def check_settings(config: Mapping[str, Any]) -> None:
    """Refuse numbers that would take a machine's memory.

    Raises:
        Unreadable: such a number.
    """
    for name, value in config.items():
        if isinstance(value, int | float) and LARGEST < abs(value) < math.inf:
            raise Unreadable(f"{shown(name)} is {shown(value)}")


def set_schedule(scheduler: Any, num_inference_steps: int, schedule: Mapping[str, list[float]]) -> None:
    """Give a scheduler its timesteps.

    Args:
        schedule: "timesteps" or "sigmas" to go through instead of num_inference_steps of the scheduler's own choice.

    Raises:
        InputError: the scheduler takes none of that name.
    """
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    for name in schedule:
        if name not in accepted:
            raise InputError(f"{type(scheduler).__name__} takes no {name} of its caller's; leave them out.")
    # On the CPU: schedulers look their tables up with it, and would wait for a GPU at every step.
    if schedule:
        scheduler.set_timesteps(**schedule, device="cpu")
    else:
        scheduler.set_timesteps(num_inference_steps, device="cpu")


def check_scheduler(scheduler: Any, num_inference_steps: int, schedule: Mapping[str, list[float]]) -> None:
    """Whether a scheduler can make a video of these steps: tried on a few numbers, since only trying tells.

    Raises:
        InputError: it cannot, and why.
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", None)
    if not callable(getattr(scheduler, "step", None)) or not isinstance(config, Mapping):
        raise InputError(f"scheduler={shown(scheduler)} is no scheduler: it has no step or no config.")
    predicts, most = config.get("prediction_type"), config.get("num_train_timesteps")
    if isinstance(most, int) and num_inference_steps > most:
        given = shown(num_inference_steps)
        raise InputError(f"num_inference_steps={given} is more than {most}, all that the model has.")
    if predicts not in PREDICTIONS:
        reason = f"it reads the network's output as {shown(predicts)}"
    else:
        try:
            trial = copy.deepcopy(scheduler)
            stepper = Stepper(trial, num_inference_steps, 0.0, torch.Generator().manual_seed(0), schedule)
            latents = torch.ones(1, 1, 1, 2, 2) * trial.init_noise_sigma
            for step in range(min(2, len(stepper.timesteps))):
                latents = stepper.step(stepper.scale(latents, step), step, latents)
            shape, order = latents.shape, trial.order
            if shape != (1, 1, 1, 2, 2) or not isinstance(order, int):
                raise ValueError(f"its step gives {list(shape)}")
            return
        except InputError:
            raise
        except Exception as error:  # diffusers' classes raise whatever they trip over
            reason = shorten(f"{type(error).__name__}: {error}")
    raise InputError(
        f"{name} cannot make this video ({reason}); give a scheduler that takes the noise or the velocity of latents, "
        "such as CogVideoXDDIMScheduler."
    )


class Stepper:
    """One run of a scheduler: hides which arguments its step takes.

    CogVideoX-DPM wants the previous step's prediction and timestep, DDIM an eta, some a generator.

    Args:
        schedule: see set_schedule.
    """

    def __init__(
        self, scheduler: Any, num_inference_steps: int, eta: float, generator: Any,
        schedule: Mapping[str, list[float]] | None = None,
    ):  # fmt: skip
        set_schedule(scheduler, num_inference_steps, schedule or {})
        self.scheduler = scheduler
        self.timesteps: Tensor = scheduler.timesteps
        accepted = inspect.signature(scheduler.step).parameters
        self._options: dict[str, Any] = {"return_dict": False}
        self._options |= {k: v for k, v in (("eta", eta), ("generator", generator)) if k in accepted}
        self._keeps_prediction = "old_pred_original_sample" in accepted
        self._prediction: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """All that a later step depends on besides the latents; `restore` puts it back."""
        kept = {name: value for name, value in vars(self.scheduler).items() if name != "_internal_dict"}
        prediction = None if self._prediction is None else self._prediction.clone()
        return {"scheduler": copy.deepcopy(kept), "prediction": prediction}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        vars(self.scheduler).update(copy.deepcopy(state["scheduler"]))
        self.timesteps, self._prediction = self.scheduler.timesteps, state["prediction"]

    def scale(self, latents: Tensor, step: int) -> Tensor:
        """What the network reads at a step."""
        return self.scheduler.scale_model_input(latents, self.timesteps[step])

    def step(self, noise: Tensor, step: int, latents: Tensor) -> Tensor:
        """The latents after a step, from the guided prediction."""
        now = self.timesteps[step]
        if not self._keeps_prediction:
            return self.scheduler.step(noise, now, latents, **self._options)[0]
        before = self.timesteps[step - 1] if step else None
        latents, self._prediction = self.scheduler.step(noise, self._prediction, now, before, latents, **self._options)
        return latents


SEEDS = -(2**63), 2**64 - 1  # what PyTorch takes


def draw(shape: torch.Size | tuple[int, ...], generator: torch.Generator | list[torch.Generator] | None,
         device: torch.device, dtype: torch.dtype) -> Tensor:  # fmt: skip
    """Standard normal noise, the numbers that diffusers' randn_tensor draws; a list has one generator per sample."""
    if isinstance(generator, list):
        return torch.cat([draw((1, *shape[1:]), g, device, dtype) for g in generator])
    source = generator.device if generator is not None else torch.device("cpu")
    return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)


def generators(
    seed: int | None, generator: torch.Generator | list[torch.Generator] | None, batch: int
) -> torch.Generator | list[torch.Generator]:
    """The caller's generator, or a new one on the CPU; without a seed it starts from the system's entropy."""
    if generator is None:
        fresh = torch.Generator()
        if seed is None:
            fresh.seed()
        else:
            number = whole("seed", seed)
            if not SEEDS[0] <= number <= SEEDS[1]:
                raise InputError(f"seed={shown(seed)} is not from {SEEDS[0]} to {SEEDS[1]}.")
            fresh.manual_seed(number)
        return fresh
    if seed is not None:
        raise InputError("Both a seed and a generator were given; give one of them.")
    if not all(isinstance(g, torch.Generator) for g in (generator if isinstance(generator, list) else [generator])):
        raise InputError(f"generator={shown(generator)} is neither a torch.Generator nor a list of them.")
    if isinstance(generator, list) and len(generator) != batch:
        raise InputError(f"{len(generator)} generators were given for {batch} videos; give one each, or a single one.")
    return generator
