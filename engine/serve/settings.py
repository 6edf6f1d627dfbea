"""What a service is told when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Limits:
    """What clients may ask for.

    Attributes:
        waiting: videos that wait, of all keys together; what comes then is refused with 429.
        waiting_per_key: of one key; None for half of `waiting` where there are several keys, else all of it.
        body: bytes of a request.
        body_seconds: in which a request has to have arrived.
        pixels: of a photo.
        photos: of one character.
        seconds: from accepting a video to its end, at most and where a client says nothing; None for no limit.
        attempts: how often a video is begun again after a server or a replica died under it.
        hosts: from which photos may be fetched; never those with private addresses.
    """

    waiting: int = 64
    waiting_per_key: int | None = None
    body: int = 32 * MIB
    body_seconds: float = 60.0
    pixels: int = 40_000_000
    photos: int = 8
    seconds: float | None = None
    attempts: int = 3
    hosts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Retention:
    """How long what was made is kept; the oldest goes first.

    Attributes:
        seconds: since a video ended.
        bytes: of all videos together.
        every: seconds between two looks.
    """

    seconds: float = 7 * 86400.0
    bytes: int = 20 * GIB
    every: float = 60.0


@dataclass(frozen=True)
class Settings:
    """A service.

    Attributes:
        folder: the engine folder.
        data: where jobs, characters and videos are kept.
        model: the name that clients give.
        devices: on which the engine is opened, once on each; empty for the one that it was built for.
        per_video: devices that share each video; 1 gives each device videos of its own.
        memory: of each device, as ConsisID.open takes it.
        loras: files or hub ids by the names that clients give.
        keys: a file of API keys; None where nobody has to show one.
        ahead: videos that an engine is given at once, of which it may batch some.
        checkpoint_every: steps after which a video could go on if the server was killed.
        preview_every: steps between two previews.
        page: whether there is a page at /.
    """

    folder: Path
    data: Path
    model: str | None = None
    devices: tuple[str, ...] = ()
    per_video: int = 1
    memory: str | None = None
    loras: Mapping[str, str] = field(default_factory=dict)
    keys: Path | None = None
    ahead: int = 4
    checkpoint_every: int = 5
    preview_every: int = 1
    page: bool = True
    limits: Limits = Limits()
    retention: Retention = Retention()
