"""What lies between the service and whoever computes: a task, what is reported of it, and what a worker can do.

All of it can be pickled: a worker may be in another process, or on another machine that has the same folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .settings import Settings


@dataclass(frozen=True)
class Task:
    """A video to make.

    Attributes:
        id: of the video.
        person: path of an Identity's file, or of a photo.
        identified: whether it is the former.
        face: who is meant in a photo.
        prompt, options: of ConsisID.generate.
        loras: the weights of LoRAs by their names.
        fps: of the file; None for the model's.
        video, thumbnail, checkpoint: paths to write.
    """

    id: str
    person: str
    identified: bool
    face: Any
    prompt: str
    options: Mapping[str, Any]
    video: str
    thumbnail: str
    checkpoint: str
    loras: Mapping[str, float] = field(default_factory=dict)
    fps: float | None = None


@dataclass(frozen=True)
class Begun:
    """An engine computes it now."""

    steps: int


@dataclass(frozen=True)
class Stepped:
    """A step of the loop is finished. preview: a JPEG of how the frame in the middle looks by now."""

    step: int
    steps: int
    preview: bytes | None = None


@dataclass(frozen=True)
class Made:
    """The files are there. seconds: per stage."""

    seconds: Mapping[str, float]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    code: str
    message: str


@dataclass(frozen=True)
class Cancelled:
    """It ended before it was made, because somebody said so."""


@dataclass(frozen=True)
class Lost:
    """Whoever computed is gone; it can be begun again."""

    message: str


Report = Begun | Stepped | Made | Failed | Cancelled | Lost
Listener = Callable[[Report], None]


@dataclass(frozen=True)
class Model:
    """What an engine makes where a client says nothing."""

    variant: str
    height: int
    width: int
    num_frames: int
    fps: int
    device: str
    loras: tuple[str, ...]


@dataclass(frozen=True)
class FaceBox:
    """A face in a photo. box: x0, y0, x1, y1 as fractions of the photo; crop: a JPEG of it."""

    box: tuple[float, float, float, float]
    crop: bytes


class Worker(Protocol):
    """Whoever computes, from any thread."""

    @property
    def slots(self) -> int:
        """How many tasks it takes at once."""

    def model(self) -> Model: ...

    def check(self, prompt: str, options: Mapping[str, Any], loras: Mapping[str, float]) -> tuple[int, int, int]:
        """Height, width and frames of the video that these would make.

        Raises:
            ConsisIDError: they make none.
        """

    def start(self, task: Task, listen: Listener) -> None:
        """Returns at once; what becomes of it is reported, in threads of the worker's. The last report is one of Made,
        Failed, Cancelled and Lost."""

    def cancel(self, id: str) -> None:
        """A task ends at its next step, or at once while it waits."""

    def identify(self, photos: Sequence[bytes], face: Any) -> tuple[bytes, bytes]:
        """An Identity's file and a JPEG of the face.

        Raises:
            ConsisIDError: no usable photo or face.
        """

    def faces(self, photo: bytes) -> list[FaceBox]:
        """Who is in a photo, from left to right."""

    def healthy(self) -> bool:
        """Whether videos can be made."""

    def close(self) -> None:
        """Tasks end where they are; what has a checkpoint can go on from it."""


MakeWorker = Callable[[Settings], Worker]
