"""What clients can do, whatever they speak: HTTP, or the page."""

import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConsisIDError
from ..face.selection import check_choice
from ..flags import face_choice
from .files import OF_CHARACTER, OF_VIDEO, Files, new_id
from .keys import Keys
from .progress import Board
from .refusals import Refusal, not_found, refusal_of
from .scheduler import Scheduler
from .settings import Settings
from .store import COMPLETED, ENDED, CharacterRow, VideoRow
from .uploads import Photos
from .wanted import VideoFields, options_of
from .worker import FaceBox, Failed, Task, Worker

STEPS = 50


@dataclass(frozen=True)
class Person:
    """Who is to be in a video: a photo that was checked, or a stored character."""

    photo: bytes | None = None
    character: str | None = None


class Service:
    """Videos and characters of everybody.

    Args:
        workers: who computes; the first answers what all of them would.

    Raises:
        ConsisIDError: the folder of data cannot be used.
    """

    def __init__(self, settings: Settings, keys: Keys, workers: Sequence[Worker]):
        self.settings, self.keys, self.workers = settings, keys, list(workers)
        self.files = Files(settings.data)
        self.store = self.files.open_store()
        self.board, self.photos = Board(), Photos(settings.limits)
        self.model = self.workers[0].model()
        self.name = settings.model or f"consisid-{self.model.variant}"
        self.scheduler = Scheduler(
            settings, self.store, self.files, self.workers, self.board, self.task_of, keys.count
        )  # fmt: skip
        self.metrics = self.scheduler.metrics

    def start(self) -> None:
        self.scheduler.start()

    def close(self) -> None:
        """Videos that are not ready go on with the next server."""
        self.scheduler.close()
        for worker in self.workers:
            worker.close()
        self.store.close()
        self.files.close()

    def create(self, owner: str, fields: VideoFields, person: Person, repeat: str | None = None) -> VideoRow:
        """Accept a video.

        Args:
            repeat: with the same one this owner gets the same video.

        Raises:
            Refusal: it cannot be made, or there is no room.
        """
        if repeat is not None and (before := self.store.repeated(owner, repeat)) is not None:
            return before
        if fields.model not in (None, self.name):
            raise Refusal(404, "model_not_found", f"The model here is called {self.name}.", "model")
        options = {"num_inference_steps": STEPS, "seed": secrets.randbits(32), **options_of(fields, self.model)}
        loras = {} if fields.lora is None else {fields.lora: 1.0 if fields.lora_weight is None else fields.lora_weight}
        try:
            face = face_of(fields.face)
            height, width, frames = self.workers[0].check(fields.prompt, options, loras)
        except ConsisIDError as error:
            raise refusal_of(error) from None
        seconds = fields.deadline if fields.deadline is not None else self.settings.limits.seconds
        if self.settings.limits.seconds is not None and seconds is not None:
            seconds = min(seconds, self.settings.limits.seconds)
        request = {
            "prompt": fields.prompt, "options": options, "loras": loras, "face": face, "fps": fields.fps,
            "identified": person.photo is None, "character": person.character, "height": height, "width": width,
            "frames": frames,
        }  # fmt: skip
        id = new_id("video")

        def add() -> VideoRow:
            self._keep_person(id, owner, person)
            deadline = None if seconds is None else time.time() + seconds
            return self.store.add_video(id, owner, request, deadline, repeat)

        try:
            return self.scheduler.admit(owner, add)
        except sqlite3.IntegrityError:  # the same Idempotency-Key, at the same moment
            self.files.remove(OF_VIDEO, id)
            found = self.store.repeated(owner, repeat or "")
            if found is None:
                raise
            return found

    def _keep_person(self, id: str, owner: str, person: Person) -> None:
        if person.photo is not None:
            self.files.write("photo", id, person.photo)
            return
        known = None if person.character is None else self.store.character(person.character, owner)
        if known is None:
            raise Refusal(404, "not_found", "There is no such character.", "character")
        self.files.share(known.id, id)

    def task_of(self, row: VideoRow) -> Task:
        """What a worker is told."""
        wanted, path = row.request, self.files.path
        options = dict(wanted["options"])
        return Task(
            id=row.id,
            person=str(path("identity" if wanted["identified"] else "photo", row.id)),
            identified=wanted["identified"],
            face=wanted["face"],
            prompt=wanted["prompt"],
            options=options,
            loras=wanted["loras"],
            fps=wanted["fps"],
            video=str(path("video", row.id)),
            thumbnail=str(path("thumbnail", row.id)),
            checkpoint=str(path("checkpoint", row.id)),
        )

    def video(self, owner: str, id: str) -> VideoRow:
        """Raises Refusal where there is none."""
        found = self.store.video(id, owner)
        if found is None:
            raise not_found("video")
        return found

    def content(self, owner: str, id: str, kind: str) -> Path:
        """The file of a video or its thumbnail; raises Refusal where it is not ready."""
        row = self.video(owner, id)
        if row.status != COMPLETED:
            reason = row.message or "ask again when its status is completed."
            raise Refusal(409, "not_ready", f"The video is {row.status.replace('_', ' ')}; {reason}")
        path = self.files.path(kind, row.id)
        if not path.is_file():
            raise not_found("video")
        return path

    def cancel(self, owner: str, id: str) -> VideoRow:
        """It ends at the next step of the loop, as failed."""
        row = self.video(owner, id)
        if row.status not in ENDED:
            self.scheduler.end(id, Failed("cancelled", "The video was cancelled."))
        return self.video(owner, id)

    def delete(self, owner: str, id: str) -> None:
        """It is gone now; where it is being made, that ends at the next step of the loop."""
        row = self.cancel(owner, id)
        self.store.delete_video(id)
        if row.status in ENDED:
            self.files.remove(OF_VIDEO, id)
        self.board.drop(id)

    def create_character(self, owner: str, name: str, photos: Sequence[bytes], face: str = "largest") -> CharacterRow:
        """Store a person; raises Refusal where there is no usable face."""
        try:
            content, picture = self.workers[0].identify(list(photos), face_of(face))
        except ConsisIDError as error:
            raise refusal_of(error, "video") from None
        id = new_id("char")
        self.files.write("character", id, content)
        self.files.write("face", id, picture)
        return self.store.add_character(id, owner, name)

    def character(self, owner: str, id: str) -> CharacterRow:
        found = self.store.character(id, owner)
        if found is None:
            raise not_found("character")
        return found

    def delete_character(self, owner: str, id: str) -> None:
        """Videos that were asked for before keep the person."""
        self.character(owner, id)
        self.store.delete_character(id)
        self.files.remove(OF_CHARACTER, id)

    def faces(self, photo: bytes) -> list[FaceBox]:
        """Who is in a photo; raises Refusal for what is none."""
        try:
            return self.workers[0].faces(self.photos.check(photo, "photo"))
        except ConsisIDError as error:
            raise refusal_of(error) from None

    def healthy(self) -> bool:
        return self.scheduler.healthy()


def face_of(text: str) -> Any:
    """Who is meant in a photo; raises InputError."""
    return check_choice(face_choice(text))
