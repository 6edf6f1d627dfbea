"""Steps of the loop that are left out or reused: approximations, each asked for by name and known before the loop.

Step cache: TeaCache (Liu et al., arXiv:2411.19108) skips the trunk of a step, face attentions included, and adds what
the trunk has changed in the last step that was computed. Its rule for ConsisID depends on the time embedding alone, so
which steps are computed is known from the schedule. Guidance window: classifier-free guidance between two steps only
(Kynkaanniemi et al., arXiv:2404.07724). Reused guidance: the unconditional half is computed at every n-th step.
First-block cache (ParaAttention, github.com/chengzeyi/ParaAttention) is adaptive: see first_block.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any

from torch import Tensor

from .errors import InputError, shown
from .shapes import whole

# Of the polynomial that turns the relative change of the time embedding into that of the trunk's output, highest power
# first: TeaCache's for ConsisID (github.com/ali-vilab/TeaCache at 7c10efc, TeaCache4ConsisID).
COEFFICIENTS = (-1.53880483e03, 8.43202495e02, -1.34363087e02, 7.97131516e00, -5.23162339e-02)
MOST = 1e6  # no threshold is larger
FASTEST = 20.0  # of a target such as "2x"


@dataclass(frozen=True)
class Shortcuts:
    """What may be left out of a video's loop. Without arguments nothing is.

    cache: the threshold of the step cache, such as 0.1, 0.15 or 0.2: the larger, the fewer steps are computed; or the
        factor that is aimed at, such as "2x": a threshold at which no more than steps / 2 are computed, before what
        guidance needs besides. None or 0 computes all.
    first_block: the threshold of the first-block cache, such as 0.1, instead of `cache`: the first block runs in every
        step, and where what it changes has moved by less since the last computed step, the others are left out. Which
        steps that are the content decides, while the loop runs.
    guidance_window: (first, end): only the steps first <= i < end have classifier-free guidance; others compute the
        prompt's half alone, as with a guidance_scale of 1.
    guidance_every: the unconditional half is computed at every n-th step with guidance, and its last prediction used
        again at those between.
    """

    cache: float | str | None = None
    guidance_window: tuple[int, int] | None = None
    guidance_every: int = 1
    first_block: float | None = None

    @classmethod
    def of(cls, value: Any) -> "Shortcuts":
        """What a caller gave: None, Shortcuts, or a mapping with its names.

        Raises:
            InputError: something else, or values that cannot be.
        """
        if value is None:
            return cls()
        if isinstance(value, Mapping):
            unknown = [name for name in value if name not in cls.__dataclass_fields__]
            if unknown:
                raise InputError(
                    f"Shortcuts have no {shown(unknown[0])}; they are {', '.join(cls.__dataclass_fields__)}."
                )
            value = cls(**value)
        if not isinstance(value, cls):
            raise InputError(f"shortcuts={shown(value)} are no Shortcuts; make them with Shortcuts(cache=0.1).")
        value.check()
        threshold, factor = cache_of(value.cache)
        window = value.guidance_window
        return cls(
            threshold if factor is None else f"{factor:g}x",
            None if window is None else (int(window[0]), int(window[1])),
            int(value.guidance_every),
            float(value.first_block) if value.first_block else None,
        )

    def check(self) -> None:
        """Raises InputError for values that cannot be."""
        cache_of(self.cache)
        window = self.guidance_window
        if window is not None:
            pair = isinstance(window, list | tuple) and len(window) == 2
            if not pair or not 0 <= whole("guidance_window", window[0]) <= whole("guidance_window", window[1]) <= MOST:
                raise InputError(f"guidance_window={shown(window)} is no (first, end) of steps from 0 on.")
        first = self.first_block
        if first is not None and (isinstance(first, bool) or not isinstance(first, Real) or not 0 <= first <= MOST):
            raise InputError(f"first_block={shown(first)} is no threshold such as 0.1.")
        if first and any(cache_of(self.cache)):
            raise InputError("Both cache and first_block were given; give one of the two.")
        if not 1 <= whole("guidance_every", self.guidance_every) <= MOST:
            raise InputError(f"guidance_every={shown(self.guidance_every)} has to be at least 1.")

    @property
    def names(self) -> dict[str, Any]:
        """Those that are used."""
        unused = asdict(Shortcuts())
        return {name: value for name, value in asdict(self).items() if value != unused[name] and value != 0}


@dataclass(frozen=True)
class Step:
    """What a step of the loop does.

    trunk: its blocks run; else what they changed at the last step that had them is added.
    guided: there are both halves of guidance, else the prompt's alone.
    fresh: the unconditional half is predicted, else its last prediction is used again; True without guidance.
    keep: a later step adds what the trunk changes here.
    looks: the first block runs in any case, and what it changes is looked at; what is kept, and added where there is no
        trunk, is what the other blocks change.
    """

    trunk: bool = True
    guided: bool = True
    fresh: bool = True
    keep: bool = False
    looks: bool = False

    @property
    def halves(self) -> slice:
        """Of (unconditional, prompt), those that are predicted where guidance was asked for."""
        return slice(0, 2) if self.guided and self.fresh else slice(1, 2)

    @property
    def count(self) -> int:
        """How many halves these are."""
        return self.halves.stop - self.halves.start


@dataclass(frozen=True)
class Loop:
    """A denoising loop that leaves something out.

    steps: those that go through the blocks. halves: of guidance, in all of these steps. keeps: it holds what the blocks
    change of the video tokens of both halves. looks: and what the first block changes of those of the prompt's.
    """

    steps: int
    halves: int
    keeps: bool
    looks: bool = False

    @classmethod
    def of(cls, steps: Sequence[Step], guided: bool) -> "Loop | None":
        """Of these steps; None where they leave nothing out."""
        looks = any(step.looks for step in steps)
        if not looks and all(step.trunk and step.guided and step.fresh for step in steps):
            return None
        halves = [step.count if guided else 1 for step in steps if step.trunk]
        return cls(len(halves), sum(halves), any(step.keep for step in steps), looks)


EXACT = Step()


def all_exact(timesteps: Tensor) -> list[Step]:
    """Every step does everything."""
    return [EXACT] * len(timesteps)


def exact_behind(steps: Sequence[Step], step: int) -> list[Step]:
    """The steps with nothing left out behind one of them: the schedule that they were planned for is another now."""
    return [*steps[: step + 1], *[EXACT] * (len(steps) - step - 1)]


def cache_of(value: float | str | None) -> tuple[float | None, float | None]:
    """The threshold and the target factor that `Shortcuts.cache` means, of which one is None at least."""
    if value is None:
        return None, None
    number: Any = value  # of a command line it may be text
    target = isinstance(value, str) and value.lower().endswith("x")
    try:
        number = float(value[:-1] if isinstance(value, str) and target else value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool) or not (1 <= number <= FASTEST if target else 0 <= number <= MOST):
        raise InputError(
            f'cache={shown(value)} is neither a threshold such as 0.1 nor a factor such as "2x", to "20x".'
        )
    if target:
        return None, number if number > 1 else None
    return number or None, None


def changes(embeddings: Tensor) -> list[float]:
    """The estimated change of the trunk's output from each step to the next, of time embeddings [S, D]."""
    rows = embeddings.double()
    relative = (rows[1:] - rows[:-1]).abs().mean(1) / rows[:-1].abs().mean(1)
    found = []
    for x in relative.tolist():
        value = 0.0
        for coefficient in COEFFICIENTS:
            value = value * x + coefficient
        found.append(value)
    return found


def computed_steps(changes: Sequence[float], threshold: float) -> list[bool]:
    """Which of len(changes) + 1 steps run the trunk: the first, the last, and each at which the changes since the last
    one that did add up to the threshold."""
    found, sum_of = [True], 0.0
    for i, change in enumerate(changes, 1):
        sum_of += change
        found.append(i == len(changes) or not sum_of < threshold)  # NaN computes
        if found[-1]:
            sum_of = 0.0
    return found


def threshold_for(changes: Sequence[float], factor: float) -> float:
    """A threshold, near the smallest, at which steps / computed steps is the factor at least, so far as that can be."""
    most = max(2, int((len(changes) + 1) / factor))
    low, high = 0.0, sum(map(abs, changes)) + 1.0
    if sum(computed_steps(changes, high)) > most:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(computed_steps(changes, middle)) <= most else (middle, high)
    return high


def plan_steps(shortcuts: Shortcuts, embeddings: Tensor, guided: bool) -> list[Step]:
    """What each step does.

    Args:
        embeddings: time embeddings [S, D] of the steps, with that of `ofs` where the model has one.
        guided: classifier-free guidance was asked for.
    """
    count = len(embeddings)
    threshold, factor = cache_of(shortcuts.cache)
    estimated = changes(embeddings) if threshold or factor else []
    if factor is not None:
        threshold = threshold_for(estimated, factor)
    trunks = [True] * count if threshold is None else computed_steps(estimated, threshold)
    first, end = shortcuts.guidance_window or (0, count)
    with_guidance = [guided and first <= i < end for i in range(count)]
    steps: list[Step] = []
    guided_before = 0  # steps with guidance so far
    have: set[int] = set()  # halves whose change of the last computed step is there
    for i in range(count):
        fresh = not with_guidance[i] or guided_before % shortcuts.guidance_every == 0
        guided_before += with_guidance[i]
        step = Step(guided=with_guidance[i], fresh=fresh)
        needed = set(range(2)[step.halves]) if guided else {1}
        trunk = trunks[i] or not needed <= have
        have = needed if trunk else have
        steps.append(Step(trunk, step.guided, step.fresh))
    if shortcuts.first_block:  # all that can be known before the loop; first_block.FirstBlock decides
        return [replace(step, keep=True, looks=True) for step in steps]
    kept = [i + 1 < count and not steps[i + 1].trunk for i in range(count)]
    return [
        Step(step.trunk, step.guided, step.fresh, step.trunk and keep) for step, keep in zip(steps, kept, strict=True)
    ]


def may_go_on(steps: Sequence[Step], step: int) -> bool:
    """Whether step `step` needs nothing of earlier ones but the latents, so that a run may go on there."""
    return step >= len(steps) or (steps[step].trunk and steps[step].fresh and not steps[step].looks)


def summary(shortcuts: Shortcuts, steps: Sequence[Step], guided: bool) -> list[str]:
    """What is approximated, a line each; empty where nothing is."""
    lines = []
    trunks = sum(step.trunk for step in steps)
    if shortcuts.first_block:
        lines.append(f"first-block cache {shortcuts.first_block}: {trunks} of {len(steps)} steps computed")
    elif trunks < len(steps):
        lines.append(f"step cache {shortcuts.cache}: {trunks} of {len(steps)} steps computed")
    with_guidance = sum(step.guided for step in steps)
    if guided and with_guidance < len(steps):
        lines.append(f"guidance in {with_guidance} of {len(steps)} steps")
    fresh = sum(step.guided and step.fresh for step in steps)
    if guided and fresh < with_guidance:
        lines.append(f"the unconditional half computed in {fresh} of {len(steps)} steps")
    return lines
