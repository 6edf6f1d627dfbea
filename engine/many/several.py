"""An engine's calls for several videos."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from ..errors import InputError, shown
from ..face.identity import Identity
from ..face.similarity import similarity
from ..parallel.devices import OnDevices
from ..prediction import Work
from ..run.options import MOST_VIDEOS, Options, is_finite
from ..run.person import identified
from ..run.recovery import outside_runs
from ..shapes import whole
from ..video import Video, as_uint8
from .group import SIZES, Group, check_together
from .jobs import Job, VideoRequest
from .queue import VideoQueue, queue_of


class Several(OnDevices):
    """What ConsisID does for more than one video."""

    make: Callable[..., Work[list[Video]]]

    def generate_many(
        self, requests: Iterable[VideoRequest | Mapping[str, Any]] | VideoQueue, *, together: int | None = None
    ) -> Iterator[Job]:
        """Many videos, which share what they can: prompts are encoded beside each other, and several videos go through
        the weights of the loop together. Each has the bytes that `generate` gives under the same plan of the memory.

        Jobs come as they end, those too that have failed or were cancelled, which disturbs no other. Others join at the
        next step while there is room. Nothing is computed while nobody asks for the next job.

        Args:
            requests: VideoRequests or mappings with the arguments of `generate`, read as far as they will soon begin;
                or a VideoQueue, which other threads fill, until it is closed.
            together: videos at once at most, in memory that the plan counts; None leaves it to the plan, where memory
                has a budget: the fewest with which a video takes, within 2 %, the least time. Without one there is
                nothing to gain, 1.

        Raises:
            InputError: no requests, no such number. What is wrong with a request is in its job.
        """
        most = check_together(together)
        return Group(self, self.make, queue_of(requests, most or SIZES[-1]), most).jobs()

    def of_seeds(
        self, person: Any, options: Options, aligned: bool, seeds: Sequence[int] | None, best_of: str | None,
        good_enough: float | None,
    ) -> list[Video] | None:  # fmt: skip
        """A video of each seed, see generate: in their order, or the best first; None where nobody asks for that."""
        if seeds is None and best_of is None and good_enough is None:
            return None
        seeds = _checked(options, seeds, best_of, good_enough)
        if best_of is not None:
            with outside_runs(self, "looking at the photo", "Open the engine with more memory."):
                (person,) = identified(self, self.networks(), [person], aligned)
        requests = [VideoRequest.with_options(person, replace(options, seed=seed), aligned) for seed in seeds]
        made: dict[int, Video] = {}
        scores: dict[int, float | None] = {}
        with closing(self.generate_many(requests)) as jobs:  # type: ignore[type-var]
            for job in jobs:
                assert job.request is not None
                seed = job.request.options.seed
                assert seed is not None
                made[seed] = _single(job.result())
                if best_of is not None:
                    score = scores[seed] = self._score(person, made[seed])
                    if good_enough is not None and score is not None and score >= good_enough:
                        break
        order = [seed for seed in seeds if seed in made]
        if best_of is not None:
            order.sort(key=lambda seed: -1.0 if (score := scores[seed]) is None else score, reverse=True)
        for seed in order:
            made[seed].stats.scores = {each: scores[each] for each in order} if scores else {}
        return [made[seed] for seed in order]

    def _score(self, person: Identity, video: Video) -> float | None:
        """The mean similarity of a video's faces to the person; None where no frame shows one."""
        with outside_runs(self, "looking at the video", "Open the engine with more memory."):
            return similarity(self.faces, person, (frame[..., ::-1].copy() for frame in as_uint8(video.frames))).mean


def _single(found: Video | list[Video]) -> Video:
    return found[0] if isinstance(found, list) else found


def _checked(options: Options, seeds: Any, best_of: Any, good_enough: Any) -> list[int]:
    """The seeds; raises InputError for what cannot be made of several seeds."""
    listed = isinstance(seeds, list | tuple) and [whole("seeds", seed) for seed in seeds]
    if not listed or len(listed) > MOST_VIDEOS or len(set(listed)) < len(listed):
        raise InputError(f"seeds={shown(seeds)} has to be a list of 1 to {MOST_VIDEOS} different numbers.")
    for name in ("seed", "generator", "latents"):
        if getattr(options, name) is not None:
            raise InputError(f"Both seeds and {name} were given; give one of the two.")
    if options.checkpoint is not None:
        raise InputError("A checkpoint holds the steps of one video, and seeds make several; leave one of them out.")
    if not isinstance(options.prompt, str | None) or options.num_videos_per_prompt != 1:
        raise InputError("seeds make several videos of one prompt; give a single one, and no num_videos_per_prompt.")
    if best_of not in (None, "identity"):
        raise InputError(f'best_of={shown(best_of)} has to be "identity", or None for all in the order of their seeds.')
    if best_of is not None and options.output_type in ("latent", "stream"):
        raise InputError(f'best_of looks at frames; give another output_type than "{options.output_type}".')
    if good_enough is not None and (best_of is None or not is_finite(good_enough)):
        raise InputError(f"good_enough={shown(good_enough)} has to be a similarity such as 0.6, beside best_of.")
    return listed
