"""What is refused before it is read, and what of a client reaches nothing else."""

import base64
import socket
import time

import httpx2 as httpx
import openai
import pytest
from support.people import bomb, png
from support.serving import running

from consisid.engine.errors import InputError
from consisid.engine.face import download
from consisid.engine.serve.cli import main
from consisid.engine.serve.files import Files
from consisid.engine.serve.flags import parser, settings_of
from consisid.engine.serve.keys import Keys
from consisid.engine.serve.refusals import Refusal
from consisid.engine.serve.settings import Limits
from consisid.engine.serve.uploads import Photos

FORM = "multipart/form-data; boundary=x"
KEYS = "alice first-key-of-alice\nalice second-key-of-alice\n# a comment\n\nbob   the-only-key-of-bob\n"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def guarded(shallow_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(KEYS)
    limits = Limits(body=300_000, body_seconds=0.5, pixels=300_000)
    with running(shallow_folder, folder / "data", keys=folder / "keys", limits=limits) as found:
        yield found


def test_keys_of_a_file(tmp_path):
    (tmp_path / "keys").write_text(KEYS)
    keys = Keys.read(tmp_path / "keys")
    assert keys.count == 2
    assert keys.owner("Bearer second-key-of-alice") == "alice"
    assert keys.owner("bearer the-only-key-of-bob") == "bob"
    password = base64.b64encode(b"anybody:the-only-key-of-bob").decode()
    assert keys.owner(f"Basic {password}") == "bob"
    for odd in (None, "", "Bearer", "Bearer the-only-key-of-bo", "Basic !", "the-only-key-of-bob", "Bearer \udcff"):
        assert keys.owner(odd) is None
    assert Keys.read(None).owner(None) == "local"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no API key"),
        ("short", "line 1: give a key of 16 characters or more"),
        ("a b c-long-enough-key", "line 1: give a key"),
        ("the-same-key-twice\nx the-same-key-twice", "line 2: this key is there twice"),
    ],
)
def test_files_that_hold_no_keys(tmp_path, text, message):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError, match=message):
        Keys.read(tmp_path / "keys")


def test_everything_but_health_needs_a_key(guarded):
    assert httpx.get(f"{guarded.address}/health").status_code == 200
    for path in ("/v1/videos", "/v1/models", "/metrics", "/openapi.json", "/", "/nowhere"):
        answer = httpx.get(f"{guarded.address}{path}")
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"].startswith("Basic")
    with pytest.raises(openai.AuthenticationError, match="This API key is not known here"):
        guarded.client("a-key-of-nobody-at-all").videos.list()
    assert guarded.client("the-only-key-of-bob").models.list().data


def test_what_is_anothers_is_not_there(guarded, photo):
    alice, bob = guarded.client("first-key-of-alice"), guarded.client("the-only-key-of-bob")
    small = png_of(photo)
    person = alice.videos.create_character(name="Eileen", video=("p.png", small, "image/png"))
    video = alice.videos.create(prompt="A.", extra_body={"num_inference_steps": 500, "character": person.id})
    assert guarded.client("second-key-of-alice").videos.retrieve(video.id).id == video.id
    assert bob.videos.list().data == []
    for asked in (bob.videos.retrieve, bob.videos.delete, bob.videos.download_content):
        with pytest.raises(openai.NotFoundError):
            asked(video.id)
    with pytest.raises(openai.NotFoundError):
        bob.videos.get_character(person.id)
    with pytest.raises(openai.NotFoundError):
        bob.videos.create(prompt="A.", extra_body={"character": person.id})
    assert bob.videos.list(after=video.id).data == []
    alice.videos.delete(video.id)


def png_of(photo: bytes) -> bytes:
    """The photograph at a quarter of its pixels."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize((256, 256)).save(file, "PNG")
    return file.getvalue()


def posted(server, **options):
    headers = {"authorization": "Bearer the-only-key-of-bob", **options.pop("headers", {})}
    return httpx.post(f"{server.address}/v1/videos", headers=headers, **options)


def test_bodies_that_are_too_large(guarded):
    """With a length that says so, and without one."""
    answer = posted(guarded, data={"prompt": "x"}, files={"input_reference": bytes(400_000)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    begin = b'--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a"\r\n\r\n'
    form = {"content-type": FORM}
    streamed = posted(guarded, content=(begin if i == 0 else bytes(50_000) for i in range(20)), headers=form)
    assert streamed.status_code == 413
    streamed = posted(guarded, content=(bytes(50_000) for _ in range(20)), headers={"content-type": "application/json"})
    assert streamed.status_code == 413


def test_bodies_that_come_too_slowly(guarded):
    address = guarded.address.removeprefix("http://")
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /v1/videos HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer the-only-key-of-bob\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        connection.settimeout(10)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"garbage", FORM, 400),
        (b"garbage", "multipart/form-data", 400),
        (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--x--\r\n', FORM, 400),
        (b"prompt=x&prompt=y", "application/x-www-form-urlencoded", 400),
        (b"x", "text/plain", 415),
        (b'{"prompt": {"a": 1}}', "application/json", 400),
        (b'{"prompt": "\\ud800", "character": "char_0"}', "application/json", 400),
    ],
)  # fmt: skip
def test_bodies_that_are_none(guarded, content, kind, status):
    answer = posted(guarded, content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_photos_that_are_too_large(guarded):
    import numpy as np

    for content, message in (
        (bomb(), "more than"), (png(np.zeros((600, 600, 3), np.uint8)), "600 x 600 is more than 0.3 megapixels"),
    ):  # fmt: skip
        answer = posted(guarded, data={"prompt": "x"}, files={"input_reference": ("x.png", content)})
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]


def test_pages_of_other_sites_and_other_names(server, guarded):
    """A page elsewhere may not post a form here, nor make its own name one of this machine's."""
    for headers in ({"origin": "https://elsewhere.example"}, {"host": "elsewhere.example"}, {"origin": "null"}):
        answer = httpx.post(f"{server.address}/v1/videos", data={"prompt": "x"}, headers=headers)
        assert answer.status_code == 403
    assert httpx.get(f"{server.address}/v1/videos", headers={"origin": server.address}).status_code == 200
    assert httpx.get(f"{server.address}/v1/videos").headers.get("access-control-allow-origin") is None
    named = {"host": "videos.example", "authorization": "Bearer the-only-key-of-bob"}
    assert httpx.get(f"{guarded.address}/v1/videos", headers=named).status_code == 200


def test_ids_reach_no_files(server, tmp_path):
    for id in ("../jobs", "..%2fjobs.sqlite", "video_../../jobs", "%2e%2e", "video_0000", "a" * 101, "\x00"):
        for path in (f"/v1/videos/{id}", f"/v1/videos/{id}/content", f"/v1/videos/characters/{id}"):
            url = httpx.URL(server.address).copy_with(raw_path=path.replace("\x00", "%00").encode())
            assert httpx.get(url).status_code in (400, 404)
    files = Files(tmp_path / "data")
    for id in ("../jobs", "video_../x", "video_", "video_ABC", "x", "video_0/0"):
        with pytest.raises(ValueError, match="is no id of a file"):
            files.path("video", id)
    files.close()


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1/me.png",
        "http://photos.example@127.0.0.1/me.png",
        "http://photos.example.elsewhere.example/me.png",
        "https://elsewhere.example/me.png",
        "file:///etc/passwd",
        "ftp://photos.example/me.png",
        "//photos.example/me.png",
        "http://[::1",
        "/etc/passwd",
    ],
)
def test_addresses_that_are_not_fetched(address, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **more: pytest.fail("it was asked for"))
    with pytest.raises(Refusal, match="fetches no photos from there"):
        Photos(Limits(hosts=frozenset({"photos.example"}))).fetch(address, "input_reference")


def test_an_allowed_host_with_a_private_address_is_not_asked(monkeypatch):
    """Nor one that an allowed host redirects to."""
    answers = {"photos.example": "10.0.0.1", "public.example": "8.8.8.8"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *given, **more: [(2, 1, 6, "", (answers[host], 80))])
    photos = Photos(Limits(hosts=frozenset({"photos.example"})))
    with pytest.raises(Refusal, match="which is not on the public internet"):
        photos.fetch("http://photos.example/me.png", "input_reference")
    with pytest.raises(InputError, match=r"leads to public\.example, which may not be asked"):
        download.download("http://public.example/", hosts=lambda name: name == "photos.example")


def test_a_redirect_to_a_host_that_was_not_allowed(monkeypatch):
    class Answer:
        status = 302

        def getheader(self, name):
            return "http://elsewhere.example/secret"

    class Connection:
        def request(self, *given, **more):
            pass

        def getresponse(self):
            return Answer()

    monkeypatch.setattr(download, "_connect", lambda *given: Connection())
    with pytest.raises(InputError, match=r"leads to elsewhere\.example, which may not be asked"):
        download.download("http://photos.example/", hosts=lambda name: name == "photos.example")


def test_data_addresses(photo):
    photos = Photos(Limits())
    assert photos.fetch("data:image/png;base64," + base64.b64encode(photo).decode(), "x") == photo
    for odd in ("data:image/png,abc", "data:;base64,!!", "data:"):
        with pytest.raises(Refusal, match="has to be in base64"):
            photos.fetch(odd, "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is reached from other machines; give --api-key-file"),
        (["--host", "::"], "give --api-key-file"),
        (["--port", "70000"], "cannot be listened at"),
        (["--api-key-file", "{tmp}/none"], "There is no file of API keys at"),
        (["--queue", "0"], "--queue 0 has to be at least 1"),
        (["--max-seconds", "nan"], "--max-seconds nan has to be more than 0"),
        (["--lora", "x"], "--lora 'x': give NAME=LORA"),
        (["--max-upload", "big"], "is not a budget"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, arguments, message):
    given = [each.replace("{tmp}", str(tmp_path)) for each in arguments]
    assert main([str(tmp_path), "--data", str(tmp_path / "data"), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_folder_of_data_has_one_server(tmp_path):
    files = Files(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="Another server uses"):
        Files(tmp_path / "data")
    files.close()
    Files(tmp_path / "data").close()


def test_flags_become_settings():
    options = parser().parse_args(["engine", "--lora", "a=b", "--max-upload", "1MiB", "--allow-host", "Photos.Example"])
    settings = settings_of(options)
    assert (settings.loras, settings.limits.body) == ({"a": "b"}, 2**20)
    assert settings.limits.hosts == {"photos.example"}


def test_comparing_keys_takes_the_same_time_for_all(tmp_path, monkeypatch):
    """Every known key is compared, also behind the one that fits."""
    import hmac

    (tmp_path / "keys").write_text(KEYS)
    keys, compared = Keys.read(tmp_path / "keys"), []
    own = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or own(a, b))
    keys.owner("Bearer first-key-of-alice")
    assert len(compared) == 3


def test_a_slow_reader_of_events_holds_nobody(server, client, character):
    """It never reads; the video is made all the same."""
    body = {"num_inference_steps": 4, "num_frames": 9, "character": character}
    video = client.videos.create(prompt="x", extra_body=body)
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET /v1/videos/{video.id}/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        time.sleep(0.05)
        assert client.videos.poll(video.id, poll_interval_ms=20).status == "completed"
