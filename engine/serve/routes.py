"""The routes of /v1/videos, as openai-python's client.videos uses them, and some more."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from . import answers
from .documents import CHARACTER_BODY, ERRORS, REMIX_BODY, VIDEO_BODY
from .forms import Form, read_form
from .refusals import Refusal
from .service import Person, Service
from .store import ENDED, VideoRow
from .uploads import character_of
from .wanted import VideoFields, fields_of, unbracketed

POLL = 500  # milliseconds between two looks of openai-python's poll
ALIVE = 15.0  # seconds after which a stream says that it is still there
MEDIA = {"video": "video/mp4", "thumbnail": "image/png"}

VideoId = Annotated[str, Path(max_length=100)]
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=100)]
Order = Annotated[Literal["asc", "desc"], Query()]


def owner_of(request: Request) -> str:
    """Who asks, as the guard found out."""
    return str(request.state.owner)


class Routes:
    """The handlers of one service."""

    def __init__(self, service: Service):
        self.service = service
        self.router = router = APIRouter(prefix="/v1/videos", responses=ERRORS, tags=["videos"])
        add = router.add_api_route
        add("/characters", self.create_character, methods=["POST"], openapi_extra=CHARACTER_BODY, tags=["characters"])
        add("/characters", self.list_characters, methods=["GET"], tags=["characters"])
        add("/characters/{character_id}", self.get_character, methods=["GET"], tags=["characters"])
        add("/characters/{character_id}", self.delete_character, methods=["DELETE"], tags=["characters"])
        add("", self.create, methods=["POST"], openapi_extra=VIDEO_BODY)
        add("", self.list, methods=["GET"])
        add("/{video_id}", self.retrieve, methods=["GET"])
        add("/{video_id}", self.delete, methods=["DELETE"])
        add("/{video_id}/cancel", self.cancel, methods=["POST"])
        add("/{video_id}/remix", self.remix, methods=["POST"], openapi_extra=REMIX_BODY)
        add("/{video_id}/content", self.content, methods=["GET"], response_class=FileResponse)
        add("/{video_id}/events", self.events, methods=["GET"], response_class=StreamingResponse)

    def shown(self, row: VideoRow) -> dict[str, Any]:
        service = self.service
        return answers.video(row, service.board, service.name, service.model.fps, service.settings.retention)

    async def create(self, request: Request) -> dict[str, Any]:
        """Ask for a video; the answer comes at once, and the video later."""
        owner = owner_of(request)
        self.service.scheduler.check_room(owner)  # before the photo is read
        form = await read_form(request)
        repeat = request.headers.get("idempotency-key")
        if repeat is not None and len(repeat) > 255:
            raise Refusal(400, "invalid_value", "An Idempotency-Key has at most 255 characters.")
        return await run_in_threadpool(self._create, owner, form, repeat)

    def _create(self, owner: str, form: Form, repeat: str | None) -> dict[str, Any]:
        fields = fields_of(unbracketed(form.values))
        person = self._person(fields, [content for name, content in form.files if name == "input_reference"])
        if any(name != "input_reference" for name, _ in form.files):
            raise Refusal(400, "unknown_field", "Give the photo as input_reference; there is no other file.")
        return self.shown(self.service.create(owner, fields, person, repeat))

    def _person(self, fields: VideoFields, files: list[bytes]) -> Person:
        """The one person that is meant."""
        reference, character = fields.input_reference, fields.character_id
        if len(files) + (reference is not None) + (character is not None) != 1:
            raise Refusal(
                400, "person", "Give one person: a photo as input_reference, or the id of a character.",
                "input_reference",
            )  # fmt: skip
        if files:
            return Person(photo=self.service.photos.check(files[0], "input_reference"))
        if character is not None:
            return Person(character=character)
        if reference is None or reference.image_url is None or reference.file_id is not None:
            raise Refusal(400, "invalid_value", "Give input_reference as a file or an image_url.", "input_reference")
        return Person(photo=self.service.photos.fetch(reference.image_url, "input_reference"))

    def list(self, request: Request, limit: Limit = 20, after: After = None, order: Order = "desc") -> dict[str, Any]:
        """Your videos, the newest first."""
        rows = self.service.store.videos(owner_of(request), after, limit + 1, order == "desc")
        return answers.page([self.shown(row) for row in rows], limit)

    def retrieve(self, request: Request, response: Response, video_id: VideoId) -> dict[str, Any]:
        """A video, with its progress in percent of its steps."""
        response.headers["openai-poll-after-ms"] = str(POLL)
        return self.shown(self.service.video(owner_of(request), video_id))

    def delete(self, request: Request, video_id: VideoId) -> dict[str, Any]:
        """A video is gone; where it is being made, that ends at the next step of the loop."""
        self.service.delete(owner_of(request), video_id)
        return {"id": video_id, "object": "video.deleted", "deleted": True}

    def cancel(self, request: Request, video_id: VideoId) -> dict[str, Any]:
        """A video is no longer made, and its row stays."""
        return self.shown(self.service.cancel(owner_of(request), video_id))

    async def remix(self, request: Request, video_id: VideoId) -> dict[str, Any]:
        """Not here: ConsisID has no video to begin from."""
        raise Refusal(
            400, "unsupported", "ConsisID makes videos from a person, not from videos; create one with this prompt.",
        )  # fmt: skip

    def content(
        self, request: Request, video_id: VideoId, variant: Literal["video", "thumbnail", "spritesheet"] = "video"
    ) -> FileResponse:
        """The mp4 of a video, or a picture of the frame in its middle."""
        if variant not in MEDIA:
            raise Refusal(400, "unsupported", "There are the variants video and thumbnail.", "variant")
        path = self.service.content(owner_of(request), video_id, variant)
        headers = {"cache-control": "private, max-age=3600", "x-content-type-options": "nosniff"}
        return FileResponse(path, media_type=MEDIA[variant], filename=path.name, headers=headers)

    async def events(self, request: Request, video_id: VideoId) -> StreamingResponse:
        """Server-sent events: `progress` after each step, with a preview, and at the end `completed`, `failed` or
        `deleted`."""
        owner = owner_of(request)
        await run_in_threadpool(self.service.video, owner, video_id)
        return StreamingResponse(
            self._events(owner, video_id), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def _events(self, owner: str, id: str) -> AsyncIterator[str]:
        async for changed in self.service.board.changes(id, ALIVE):
            if not changed:
                yield ": still there\n\n"
            row = await run_in_threadpool(self.service.store.video, id, owner)
            if row is None:
                yield event("deleted", {"id": id, "object": "video.deleted", "deleted": True})
                return
            if row.status in ENDED:
                yield event(row.status, self.shown(row))
                return
            if changed:
                yield event("progress", answers.progress(row, self.service.board))

    async def create_character(self, request: Request) -> dict[str, Any]:
        """Store a person from photos, or from a video that shows the person, for any number of videos."""
        form = await read_form(request)
        return await run_in_threadpool(self._create_character, owner_of(request), form)

    def _create_character(self, owner: str, form: Form) -> dict[str, Any]:
        name, face, photos = character_of(form, self.service.photos)
        return answers.character(self.service.create_character(owner, name, photos, face))

    def list_characters(
        self, request: Request, limit: Limit = 20, after: After = None, order: Order = "desc"
    ) -> dict[str, Any]:
        """Your stored people, the newest first."""
        rows = self.service.store.characters(owner_of(request), after, limit + 1, order == "desc")
        return answers.page([answers.character(row) for row in rows], limit)

    def get_character(self, request: Request, character_id: VideoId) -> dict[str, Any]:
        """A stored person."""
        return answers.character(self.service.character(owner_of(request), character_id))

    def delete_character(self, request: Request, character_id: VideoId) -> dict[str, Any]:
        """A person is forgotten; videos that were asked for before keep theirs."""
        self.service.delete_character(owner_of(request), character_id)
        return {"id": character_id, "object": "character.deleted", "deleted": True}


def event(name: str, data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
