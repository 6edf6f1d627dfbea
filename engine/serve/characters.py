"""Stored people for servers of others that have none: /v1/videos/characters in front of their application.

There is no engine in the process that answers clients, so a character is kept as its photos; who is in them is found
out where the engine is, when a video of the character is made.
"""

import json
import time
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from ..errors import ConsisIDError, InputError
from ..util.files import atomic_dir
from .files import LETTERS, new_id
from .flags import default_data
from .forms import read_form
from .guard import App, Body, Receive, Scope, Send, check_origin, refuse
from .refusals import Refusal, not_found, refusal_of
from .settings import Limits
from .uploads import Photos, character_of

ROUTE = "/v1/videos/characters"
ASKED = "/v1/models"  # a route of every server: whoever may not ask for it may not ask here
ABOUT = "character.json"


class People:
    """Characters in a folder, each in one of its own. All processes of a server see the same.

    Args:
        folder: where; None for a place in the home of the user.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = default_data() / "plugged" if folder is None else folder

    def add(self, name: str, face: str, photos: list[bytes]) -> dict[str, Any]:
        """A new one, as OpenAI's API shows it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        id, now = new_id("char"), int(time.time())
        shown = {"id": id, "object": "character", "created_at": now, "name": name}
        with atomic_dir(self.folder / id) as aside:
            for number, photo in enumerate(photos):
                (aside / f"{number}.photo").write_bytes(photo)
            (aside / ABOUT).write_text(json.dumps({"shown": shown, "face": face}))
        return shown

    def _about(self, id: str) -> dict[str, Any]:
        kind, _, drawn = id.partition("_")
        try:
            if kind != "char" or not drawn or not LETTERS.issuperset(drawn):
                raise FileNotFoundError
            found: dict[str, Any] = json.loads((self.folder / id / ABOUT).read_text())
        except FileNotFoundError:
            raise not_found("character") from None
        return found

    def get(self, id: str) -> dict[str, Any]:
        """Raises Refusal where there is none."""
        found: dict[str, Any] = self._about(id)["shown"]
        return found

    def all(self) -> list[dict[str, Any]]:
        """The newest first."""
        found = [self.get(folder.name) for folder in self.folder.glob("char_*")]
        return sorted(found, key=lambda shown: (shown["created_at"], shown["id"]), reverse=True)

    def delete(self, id: str) -> None:
        """Raises Refusal where there is none."""
        self._about(id)
        for file in sorted((self.folder / id).iterdir(), key=lambda file: file.name != ABOUT):
            file.unlink(missing_ok=True)
        (self.folder / id).rmdir()

    def photos(self, id: str) -> tuple[str, list[bytes]]:
        """Who is meant, as a word, and the photos.

        Raises:
            InputError: there is no such character.
        """
        try:
            about = self._about(id)
        except Refusal as refusal:
            raise InputError(str(refusal)) from None
        return about["face"], [file.read_bytes() for file in sorted((self.folder / id).glob("*.photo"))]


class Characters:
    """An ASGI application in front of somebody's server, with a route more.

    It stands before what asks for API keys there, so it asks the server itself: a request with a key that the server
    does not take is refused here too.
    """

    def __init__(self, app: App, people: People | None = None):
        self.app, self.people, self.limits = app, people or People(), Limits()
        self.uploads = Photos(self.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or (path != ROUTE and not path.startswith(f"{ROUTE}/")):
            await self.app(scope, receive, send)
            return
        request = Request(scope, Body(receive, self.limits).receive)
        try:
            check_origin(request.headers)
            await self._check_key(scope)
            answer = await self._answer(request, path.removeprefix(ROUTE).strip("/"))
        except ConsisIDError as error:
            await refuse(refusal_of(error), scope, send)
            return
        await JSONResponse(answer)(scope, receive, send)

    async def _check_key(self, scope: Scope) -> None:
        status = 500

        async def sent(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        async def nothing() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        kept = [(name, value) for name, value in scope["headers"] if name in (b"authorization", b"host")]
        asked = {"method": "GET", "path": ASKED, "raw_path": ASKED.encode(), "query_string": b"", "headers": kept}
        await self.app({**scope, **asked}, nothing, sent)
        if not 200 <= status < 300:
            raise Refusal(status if status >= 400 else 500, "not_allowed", "The server refuses this API key.")

    async def _answer(self, request: Request, id: str) -> dict[str, Any]:
        people = self.people
        match request.method, bool(id):
            case "POST", False:
                form = await read_form(request)
                return await run_in_threadpool(lambda: people.add(*character_of(form, self.uploads)))
            case "GET", False:
                return {"object": "list", "data": await run_in_threadpool(people.all), "has_more": False}
            case "GET", True:
                return await run_in_threadpool(people.get, id)
            case "DELETE", True:
                await run_in_threadpool(people.delete, id)
                return {"id": id, "object": "character.deleted", "deleted": True}
        raise Refusal(405, "http_405", "This address does not take this method.")
