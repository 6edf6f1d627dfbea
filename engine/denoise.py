"""The denoising loop."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .conditioning import Conditioning, Positions, project_text, split_text
from .errors import InputError, NumericalError
from .first_block import FirstBlock
from .prediction import Prediction, TimeTable, Work, time_table
from .runtime.executor import GraphExecutor
from .sampling import Stepper
from .shortcuts import Step, all_exact, exact_behind, may_go_on

CFG_MODES = ("batched", "sequential")


@dataclass(frozen=True)
class LoopState:
    """A finished step, to go on from.

    steps: finished ones. latents: [b, F, 16, h, w]. prompt_embeds: [G * b, T, d_model] where a callback replaced them,
    else None. stepper: Stepper.state().
    """

    steps: int
    latents: Tensor
    prompt_embeds: Tensor | None
    stepper: dict[str, Any]


def _room(given: Conditioning) -> Tensor:
    """For what the trunk changes of a person's tokens in both halves, [G * b, V, C]."""
    return given.text.new_empty((len(given.text), *given.image.shape[1:]))


def _of_people(
    networks: GraphExecutor, latents: Tensor, step: int, times: TimeTable, given: Sequence[Conditioning], cfg: str,
    what: Step, kept: Sequence[Tensor | None], place: Tensor | None = None, decides: FirstBlock | None = None,
) -> Work[Tensor]:  # fmt: skip
    """The predicted noise [G * b, F, 16, h, w] for the latents [b, F, 16, h, w] of the videos of each person.

    Args:
        kept: what the trunk changes of each person's tokens, [G * b, V, C], both halves, or None.
        place: where hidden states are between two calls; see Prediction.
        decides: looks at what the first block changes.
    """
    found = []
    parts = zip(latents.split([len(one.image) for one in given]), given, kept, strict=True)
    for person, (part, one, change) in enumerate(parts):
        count, both = len(part), len(one.text) > len(part)
        rows = slice(what.halves.start * count, what.halves.stop * count) if both else slice(0, count)
        texts = one.text[rows]
        changes = None if change is None else change[rows]
        size = count if cfg == "sequential" else len(texts)
        halves = []
        for i in range(0, len(texts), size):
            text = replace(one, text=texts[i : i + size])
            prompted = slice(max(0, count - rows.start - i) if both else 0, None)  # rows of the prompt's half
            sees = decides is not None and (prompted.start or 0) < size
            made = Prediction(
                networks, part, step, times, text, what, None if changes is None else changes[i : i + size], place,
                partial(decides.look, person) if decides is not None and sees else None, prompted,
            )  # fmt: skip
            yield made
            halves.append(made.take())
        found.append(torch.cat(halves))
    if len(found) == 1:
        return found[0]
    return torch.cat(
        [x.unflatten(0, (-1, len(one.image))) for x, one in zip(found, given, strict=True)], dim=1
    ).flatten(0, 1)


def _place(given: Sequence[Conditioning], cfg: str) -> Tensor:
    """For the hidden state of any prediction, [B * (T + V) * C]."""
    samples = max(len(one.image) if cfg == "sequential" else len(one.text) for one in given)
    text, image = given[0].text, given[0].image
    return text.new_empty(samples * (text.shape[1] + image.shape[1]) * text.shape[2])


def with_prompt(given: Sequence[Conditioning], text: Tensor) -> list[Conditioning]:
    """The same people with other text tokens [G * b, T, C]."""
    parts = split_text(text, [len(one.image) for one in given])
    return [replace(one, text=part) for one, part in zip(given, parts, strict=True)]


def guidance_weight(scale: float, dynamic: bool | str, step: int, timestep: float, steps: int) -> float:
    """The weight of the prompt at a step.

    dynamic=True is diffusers' formula, which puts the timestep where the index of the step belongs; "step" is the
    formula that was meant, rising with the cosine from 1 to 1 + scale (CogVideoX, arXiv:2408.06072).
    """
    if not dynamic:
        return scale
    progress = step / steps if dynamic == "step" else (steps - timestep) / steps
    return 1 + scale * (1 - math.cos(math.pi * progress**5.0)) / 2


def not_finite(step: int, steps: int) -> NumericalError:
    """The error of latents with NaN or infinity after `step` finished steps."""
    where = f"after step {step} of {steps}" if step else "before the first step"
    return NumericalError(
        f"The latents are not finite {where}; check the LoRA, the scheduler and the embeddings that were passed in, or "
        "build the engine in another dtype."
    )


def denoise(
    networks: GraphExecutor,
    stepper: Stepper,
    latents: Tensor,
    prompt_embeds: Tensor,
    given: Sequence[Conditioning],
    positions: Positions,
    *,
    guidance: Callable[[int, float], float],
    cfg: str = "batched",
    on_step: Callable[[int, Any, dict[str, Tensor]], dict[str, Tensor]] | None = None,
    watch: Callable[[int, Tensor], None] = lambda step, latents: None,
    state: LoopState | None = None,
    keep: Callable[[LoopState], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    what: Callable[[Tensor], Sequence[Step]] = all_exact,
    table: Callable[[GraphExecutor, Tensor], TimeTable] = time_table,
    apart: bool = False,
    decides: FirstBlock | None = None,
) -> Work[Tensor]:
    """From noise to latents [b, F, 16, h, w]; it stops where a prediction has to be run, see prediction.run_together.

    Args:
        prompt_embeds: [G * b, T, d_model], what the text of `given` was made from; a callback may replace it.
        given: of each person's videos, one after the other.
        guidance: the weight of the prompt at a step and its timestep; not asked without guidance.
        cfg: "batched" runs both halves of classifier-free guidance at once, "sequential" one after the other.
        on_step: called with (step, timestep, {"latents", "prompt_embeds"}); gives those that the loop goes on with.
        watch: called after each step with its index and latents.
        state: where an earlier run of the same video stopped.
        keep: called after each step with where to go on from.
        stop: asked after each step whether it was the last.
        what: each step does, from the timesteps; by default everything.
        table: the adaptive norms of every step.
        apart: hidden states are kept apart from what comes and goes, since calls of other loops come in between.
        decides: which steps run all their blocks, where that is not known before.

    Raises:
        NumericalError: NaN or infinity in the latents; the step is named.
    """
    if cfg not in CFG_MODES:
        raise InputError(f"cfg={cfg!r} is not a mode; it is one of {', '.join(CFG_MODES)}.")
    batch, steps = latents.shape[0], len(stepper.timesteps)
    guided, first, replacement = prompt_embeds.shape[0] > batch, 0, None
    if state is not None:
        stepper.restore(state.stepper)
        latents, first, replacement = state.latents, state.steps, state.prompt_embeds
    if replacement is not None:
        prompt_embeds = replacement
        given = with_prompt(given, project_text(networks, positions, prompt_embeds))
    plan = what(stepper.timesteps)
    times = table(networks, stepper.timesteps)
    sound = [latents.isfinite().all()]  # read after the loop: reading it here would stall the device
    unconditional = torch.empty(0)
    keeps = any(each.keep for each in plan[first:])
    kept = [_room(one) if keeps else None for one in given]  # before the loop, in which no memory is asked for
    place = _place(given, cfg) if apart else None
    if decides is not None:
        decides.prepare([one.text.new_empty(one.image.shape) for one in given])
    for step in range(first, steps):
        now = plan[step] if decides is None else decides.step(step)
        calls = [each.count if cfg == "sequential" and guided else 1 for each in plan[step:] if each.trunk]
        networks.weights.expect("denoise", len(given) * sum(calls))
        inputs = stepper.scale(latents, step)
        noise = yield from _of_people(networks, inputs, step, times, given, cfg, now, kept, place, decides)
        if decides is not None:
            decides.tell()
        if guided:
            weight = guidance(step, times.timesteps[step])
        if guided and now.guided:
            if now.fresh:
                unconditional, noise = noise.chunk(2)
            noise = unconditional + weight * (noise - unconditional)
        latents = stepper.step(noise, step, latents).to(networks.dtype)
        if on_step is not None:
            version = prompt_embeds._version
            tensors = on_step(step, stepper.timesteps[step], {"latents": latents, "prompt_embeds": prompt_embeds})
            latents = tensors["latents"]
            if tensors["prompt_embeds"] is not prompt_embeds or prompt_embeds._version != version:
                prompt_embeds = replacement = tensors["prompt_embeds"]
                given = with_prompt(given, project_text(networks, positions, prompt_embeds))
            if stepper.timesteps.tolist() != times.timesteps:
                times = table(networks, stepper.timesteps)
                plan, decides = exact_behind(plan, step), None
        sound.append(latents.isfinite().all())
        watch(step, latents)
        if keep is not None and may_go_on(plan, step + 1):
            keep(LoopState(step + 1, latents, replacement, stepper.state()))
        if stop():
            break
    for step, fine in enumerate(torch.stack(sound).tolist(), first):
        if not fine:
            raise not_finite(step, steps)
    return latents
