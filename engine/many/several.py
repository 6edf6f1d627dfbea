"""An engine's calls for several videos."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..engine import Engine
from ..prediction import Work
from ..video import Video
from .group import SIZES, Group, check_together
from .jobs import Job, VideoRequest
from .queue import VideoQueue, queue_of


class Several(Engine):
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
                has a budget: as many as make the seconds of each least. Without one there is nothing to gain, 1.

        Raises:
            InputError: no requests, no such number. What is wrong with a request is in its job.
        """
        most = check_together(together)
        return Group(self, self.make, queue_of(requests, most or SIZES[-1]), most).jobs()
