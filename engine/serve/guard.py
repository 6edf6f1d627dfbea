"""What every request has to pass before anything of it is read: host, origin, key, size, time."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from .keys import Keys
from .refusals import Refusal
from .settings import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health",)  # without a key
LOCAL = ("localhost", "127.0.0.1", "::1")


class Guard:
    """An ASGI application in front of another one. Of those it lets through, scope["state"]["owner"] says who asks.

    Args:
        keys: who may ask. Where nobody has to show a key, the server is reached under names of this machine only: a
            page elsewhere cannot make its own name one of this machine's.
        limits: of the body.
    """

    def __init__(self, app: App, keys: Keys, limits: Limits):
        self.app, self.keys, self.limits = app, keys, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check_host(headers)
            check_origin(headers)
            owner = self.keys.owner(headers.get("authorization"))
            if owner is None and scope["path"] not in OPEN:
                raise Refusal(
                    401, "invalid_api_key", "This API key is not known here; send one as Authorization: Bearer KEY.",
                    headers={"www-authenticate": 'Basic realm="consisid: the API key is the password"'},
                )  # fmt: skip
            self._check_length(headers)
        except Refusal as refusal:
            await refuse(refusal, scope, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        if scope["type"] == "http":
            receive = Body(receive, self.limits).receive
        begun = False

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Refusal as refusal:  # of the body, from wherever it was read
            if begun:
                raise
            await refuse(refusal, scope, send)

    def _check_host(self, headers: dict[str, str]) -> None:
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if not self.keys.needed and host not in LOCAL:
            raise Refusal(
                403, "host", "Without API keys this server answers to localhost and 127.0.0.1 only; start it with keys."
            )

    def _check_length(self, headers: dict[str, str]) -> None:
        given = headers.get("content-length", "0")
        if given.isdecimal() and int(given) > self.limits.body:
            raise too_large(self.limits)


def check_origin(headers: Mapping[str, str]) -> None:
    """Raises Refusal for a page of another site."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise Refusal(403, "origin", "Pages of other sites may not use this server.")


class Body:
    """The body of a request within a size and a time."""

    def __init__(self, receive: Receive, limits: Limits):
        self._receive, self._limits, self._read, self._ended = receive, limits, 0, False
        self._deadline = asyncio.get_running_loop().time() + limits.body_seconds

    async def receive(self) -> MutableMapping[str, Any]:
        if self._ended:  # whoever waits now waits for the client to leave
            return await self._receive()
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, left))
        except TimeoutError:
            raise Refusal(
                408, "too_slow", f"The request did not arrive within {self._limits.body_seconds:g} seconds.",
                headers={"connection": "close"},
            ) from None  # fmt: skip
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
            if self._read > self._limits.body:
                raise too_large(self._limits)
        return message


def too_large(limits: Limits) -> Refusal:
    return Refusal(
        413, "too_large", f"The request has more than {limits.body} bytes; give a smaller photo.",
        headers={"connection": "close"},
    )  # fmt: skip


async def refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    """Answer with an error."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    content = json.dumps(refusal.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **refusal.headers}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})
