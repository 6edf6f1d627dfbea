"""The files of videos and characters: named by ids that this server drew, never by what a client says."""

import fcntl
import os
import secrets
import shutil
import sqlite3
import time
from pathlib import Path

from ..errors import InputError, WriteError
from ..util.files import atomic_file
from .settings import Retention
from .store import Store

LETTERS = frozenset("0123456789abcdef")
ROOMS = {
    "video": ("videos", ".mp4"),
    "thumbnail": ("videos", ".png"),
    "photo": ("people", ".photo"),
    "identity": ("people", ".safetensors"),
    "checkpoint": ("checkpoints", ".safetensors"),
    "character": ("characters", ".safetensors"),
    "face": ("characters", ".png"),
}
OF_VIDEO = ("video", "thumbnail", "photo", "identity", "checkpoint")
WORKING = ("photo", "identity", "checkpoint")  # of no use once a video has ended
OF_CHARACTER = ("character", "face")


def new_id(kind: str) -> str:
    """`video_` or `char_` and 128 random bits."""
    return f"{kind}_{secrets.token_hex(16)}"


class Files:
    """The folder of a server, which no second one uses meanwhile.

    Raises:
        InputError: another server has it; WriteError: it cannot be made.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for room in {room for room, _ in ROOMS.values()}:
                (folder / room).mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise WriteError(f"{folder} cannot be used ({error.strerror}); choose another place with --data.") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise InputError(f"Another server uses {folder}; stop it, or choose another place with --data.") from None

    def open_store(self) -> Store:
        """The tables.

        Raises:
            InputError: they cannot be read.
        """
        file = self.folder / "jobs.sqlite"
        try:
            store = Store(file)
        except sqlite3.Error as error:
            raise InputError(f"{file} cannot be used ({error}); move it away, or choose another place.") from None
        file.chmod(0o600)
        return store

    def close(self) -> None:
        os.close(self._lock)

    def path(self, kind: str, id: str) -> Path:
        """Where a file is. An id that this server did not draw is a fault of ours, not of a client: those are looked up
        before."""
        _, _, random = id.partition("_")
        if not random or not LETTERS.issuperset(random):
            raise ValueError(f"{id!r} is no id of a file")
        room, ending = ROOMS[kind]
        return self.folder / room / f"{id}{ending}"

    def write(self, kind: str, id: str, content: bytes) -> Path:
        path = self.path(kind, id)
        with atomic_file(path) as aside:
            aside.write_bytes(content)
        return path

    def share(self, character: str, video: str) -> None:
        """A video keeps its person, whatever becomes of the character."""
        source, target = self.path("character", character), self.path("identity", video)
        try:
            os.link(source, target)
        except OSError:  # a file system without links
            shutil.copyfile(source, target)

    def remove(self, kinds: tuple[str, ...], id: str) -> None:
        for kind in kinds:
            self.path(kind, id).unlink(missing_ok=True)

    def size(self, id: str) -> int:
        """Bytes of what a video came to."""
        paths = (self.path(kind, id) for kind in ("video", "thumbnail"))
        return sum(path.stat().st_size for path in paths if path.exists())

    def sweep(self, known: set[str]) -> None:
        """Remove what belongs to nothing: a server was killed between a file and its row."""
        for room in {room for room, _ in ROOMS.values()}:
            for path in (self.folder / room).iterdir():
                if path.name.partition(".")[0] not in known:
                    path.unlink(missing_ok=True)


def expired(store: Store, keep: Retention) -> list[str]:
    """Ids of the ended videos that are too old, and of the oldest of those that take too much room together."""
    rows, limit = store.ended(), time.time() - keep.seconds
    room, found = sum(row.bytes for row in rows), []
    for row in rows:
        if (row.ended or 0) < limit or room > keep.bytes:
            found.append(row.id)
            room -= row.bytes
    return found
