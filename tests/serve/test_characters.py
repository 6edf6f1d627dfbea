"""Stored people in front of somebody else's server."""

import asyncio
import stat

import httpx2 as httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from consisid.engine.errors import InputError
from consisid.engine.serve.characters import ROUTE, Characters, People
from consisid.engine.serve.refusals import Refusal

KEY = {"authorization": "Bearer the key"}


@pytest.fixture
def people(tmp_path) -> People:
    return People(tmp_path / "people")


@pytest.fixture
def ask(people):
    """Requests to a server that asks for a key below /v1, as vLLM's does, and has routes of videos by their ids."""
    inner = FastAPI()

    @inner.middleware("http")
    async def keys(request: Request, call_next):
        if request.headers.get("authorization") != KEY["authorization"]:
            return JSONResponse({"error": "Unauthorized"}, 401)
        return await call_next(request)

    inner.get("/v1/models")(lambda: {"data": []})
    inner.get("/v1/videos/{video_id}")(lambda video_id: {"video": video_id})
    app = Characters(inner, people)

    def ask(method, path, headers=KEY, **options):
        async def send():
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(send())

    return ask


def test_a_character_is_made_listed_and_deleted(ask, people, photo):
    files = [("image", ("a.png", photo)), ("image", ("b.png", photo))]
    made = ask("POST", ROUTE, data={"name": "Eileen", "face": "center"}, files=files)
    assert made.status_code == 200
    id = made.json()["id"]
    assert made.json() == {"id": id, "object": "character", "created_at": made.json()["created_at"], "name": "Eileen"}
    assert ask("GET", f"{ROUTE}/{id}").json() == made.json()
    assert ask("GET", ROUTE).json() == {"object": "list", "data": [made.json()], "has_more": False}
    assert people.photos(id) == ("center", [photo, photo])
    assert stat.S_IMODE(people.folder.stat().st_mode) == 0o700
    assert ask("DELETE", f"{ROUTE}/{id}").json() == {"id": id, "object": "character.deleted", "deleted": True}
    assert list(people.folder.iterdir()) == []
    assert ask("GET", f"{ROUTE}/{id}").status_code == ask("DELETE", f"{ROUTE}/{id}").status_code == 404
    with pytest.raises(InputError, match="There is no such character"):
        people.photos(id)


def test_what_is_not_its_own_is_the_servers(ask):
    assert ask("GET", "/v1/videos/video_1").json() == {"video": "video_1"}
    assert ask("GET", "/v1/videos/charactersome").json() == {"video": "charactersome"}
    assert ask("GET", "/v1/models").json() == {"data": []}


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer another"}])
@pytest.mark.parametrize(("method", "path"), [("GET", ROUTE), ("POST", ROUTE), ("DELETE", f"{ROUTE}/char_00")])
def test_a_key_that_the_server_refuses_is_refused_here(ask, photo, people, method, path, headers):
    answer = ask(method, path, headers=headers, files={"video": ("a.png", photo)}, data={"name": "E"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
    assert not people.folder.exists()


def test_pages_of_other_sites_are_refused(ask):
    answer = ask("POST", ROUTE, headers={**KEY, "origin": "http://elsewhere"}, data={"name": "E"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin")


def test_an_application_that_fails_admits_nobody(people):
    """What does not answer whether somebody may ask is no permission."""
    said = []

    async def silent(scope, receive, send):
        pass

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "GET", "path": ROUTE, "headers": [], "query_string": b""}
    asyncio.run(Characters(silent, people)(scope, None, send))
    assert said[0]["status"] == 500


@pytest.mark.parametrize("id", ["{}/..", "{}/../..", "..", "char_", "char_00", "video_00", "{}%2F.."])
def test_names_that_were_not_drawn_are_not_looked_up(ask, people, photo, id):
    made = people.add("Eileen", "largest", [photo])["id"]
    for folder in (people.folder, people.folder.parent):
        (folder / "character.json").write_text('{"shown": {"id": "a secret"}, "face": "largest"}')
    id = id.format(made)
    for call in (people.get, people.delete):
        with pytest.raises(Refusal, match="There is no such character"):
            call(id)
    with pytest.raises(InputError, match="There is no such character"):
        people.photos(id)
    answers = [ask(method, f"{ROUTE}/{id.replace('/', '%2F')}") for method in ("GET", "DELETE")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert people.get(made)["name"] == "Eileen"


@pytest.mark.parametrize(
    ("fields", "content", "sentence"),
    [
        ({"name": ""}, None, "Give a name of 1 to 200 characters."),
        ({"name": "E", "colour": "red"}, None, "The fields are name, face, video and image."),
        ({"name": "E"}, b"no picture", "image"),
    ],
)
def test_what_cannot_be_a_character(ask, people, photo, fields, content, sentence):
    answer = ask("POST", ROUTE, data=fields, files={"image": ("a.png", content or photo)})
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]
    assert not people.folder.exists()


def test_other_methods(ask):
    assert ask("PUT", ROUTE).status_code == 405
