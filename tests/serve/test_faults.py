"""What goes wrong in one part of a server: the sentence that a client reads, and that the rest goes on."""

import asyncio
import io
import socket
import sqlite3
import sys
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import uvicorn
from PIL import Image
from support.serving import StandIn, ask, scheduled, wait_until

from consisid.engine.errors import EngineError, FaceError, InputError, WriteError
from consisid.engine.serve import files as data_files
from consisid.engine.serve import process, scheduler
from consisid.engine.serve.cli import main
from consisid.engine.serve.files import OF_VIDEO, Files
from consisid.engine.serve.guard import Guard
from consisid.engine.serve.keys import Keys, is_loopback
from consisid.engine.serve.local import failed, open_workers
from consisid.engine.serve.page import Page
from consisid.engine.serve.refusals import Refusal
from consisid.engine.serve.service import Person
from consisid.engine.serve.settings import Limits, Settings
from consisid.engine.serve.store import COMPLETED, FAILED
from consisid.engine.serve.uploads import frames_of
from consisid.engine.serve.wanted import VideoFields, cache_of, unbracketed
from consisid.engine.serve.worker import Begun, Cancelled, Failed, Stepped


def status(service, id):
    return service.store.video(id).status


def test_who_comes_early_waits_and_the_place_is_free_again(tmp_path, monkeypatch, capsys):
    """The place is said, and taken before the server runs; when it has ended others can have it."""
    host, found = "127.0.0.1", []

    class Server:
        def __init__(self, config):
            self.config = config

        def run(self, sockets):
            (listening,) = sockets
            found.append(listening.getsockname()[1])
            with socket.create_connection((host, found[0]), timeout=5):
                pass
            assert not self.config.server_header
            with pytest.raises(InputError, match=rf"--host {host} --port {found[0]} cannot be listened at"):
                process.listen(host, found[0])

    monkeypatch.setattr(uvicorn, "Server", Server)
    monkeypatch.setattr(process, "open_workers", lambda settings: [StandIn()])
    process.run(Settings(tmp_path / "nowhere", tmp_path / "data", page=False), host, 0)
    assert f"consisid-serve: http://{host}:{found[0]}/ serves consisid-toy" in capsys.readouterr().err
    process.listen(host, found[0]).close()


def test_what_is_not_installed_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "consisid.engine.serve.process")
    monkeypatch.delattr("consisid.engine.serve.process")
    assert main([str(tmp_path), "--data", str(tmp_path / "data")]) == 2
    assert "uvicorn is not installed; pip install 'consisid[serve]'." in capsys.readouterr().err


def test_a_device_is_named_once(tmp_path):
    with pytest.raises(EngineError, match="--devices cuda:1 cpu cuda:1: each device can be named once"):
        open_workers(Settings(tmp_path, tmp_path, devices=("cuda:1", "cpu", "cuda:1")))


def test_what_was_not_foreseen_is_in_the_log_alone(caplog):
    assert failed(FaceError("No face was found.")) == Failed("no_face", "No face was found.")
    assert failed(KeyError("a secret")) == Failed(
        "server_error", "The server failed at this video; its log says where."
    )
    assert "a secret" in caplog.text


def test_the_scheduler_goes_on(tmp_path, monkeypatch, caplog):
    """What failed was looking for old videos, which is tried again another time."""
    worker, own, failures = StandIn(), scheduler.expired, []

    def expired(*given):
        if not failures:
            failures.append(given)
            raise sqlite3.OperationalError("disk I/O error")
        return own(*given)

    monkeypatch.setattr(scheduler, "expired", expired)
    monkeypatch.setattr(scheduler.time, "sleep", lambda seconds: None)
    with scheduled(tmp_path, worker) as service:
        id = ask(service)
        wait_until(lambda: worker.started == [id])
        worker.finish(id)
        assert status(service, id) == COMPLETED
        assert service.healthy()
    assert len(failures) == 1
    assert "the scheduler goes on" in caplog.text


def test_what_a_worker_says_too_late(tmp_path):
    """Of a video that was deleted, and to a server that has ended."""
    worker = StandIn()
    with scheduled(tmp_path, worker) as service:
        deleted, open_still = ask(service), ask(service)
        wait_until(lambda: worker.started == [deleted])
        service.delete("person 0", deleted)
        wait_until(lambda: worker.started == [deleted, open_still])
        worker.report(deleted, Cancelled())
        assert service.store.video(deleted) is None
        service.scheduler.close()
        worker.report(open_still, Begun(5), Cancelled())
        assert status(service, open_still) != FAILED


def test_the_same_key_of_repetition_at_the_same_moment(tmp_path, monkeypatch):
    """Both look for a video before either is stored: one video is made, and nothing is left of the other."""
    with scheduled(tmp_path, StandIn(slots=0)) as service:
        own, looked = service.store.repeated, []

        def repeated(owner, key):
            looked.append(key)
            return None if len(looked) == 2 else own(owner, key)

        monkeypatch.setattr(service.store, "repeated", repeated)
        first, second = (
            service.create("person 0", VideoFields(prompt="A woman."), Person(photo=b"a photo"), "once") for _ in "ab"
        )
        assert (first.id, looked) == (second.id, ["once"] * 3)
        assert [path.name for path in tmp_path.rglob("video_*") if path.stem != first.id] == []


def test_files_that_are_gone(tmp_path):
    worker = StandIn()
    with scheduled(tmp_path, worker) as service:
        id = ask(service)
        wait_until(lambda: worker.started == [id])
        with pytest.raises(Refusal, match="ask again when its status is completed"):
            service.content("person 0", id, "video")
        worker.finish(id)
        assert service.content("person 0", id, "video").stat().st_size == 1000
        service.files.remove(OF_VIDEO, id)
        with pytest.raises(Refusal) as refused:
            service.content("person 0", id, "video")
        assert refused.value.status == 404


def test_a_photo_that_cannot_be_looked_at(tmp_path, photo, monkeypatch):
    worker = StandIn()

    def faces(content):
        raise FaceError("It is too dark.")

    monkeypatch.setattr(worker, "faces", faces)
    with scheduled(tmp_path, worker) as service, pytest.raises(Refusal, match="It is too dark"):
        service.faces(photo)


def test_folders_of_data_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match=r"file/data cannot be used \(.*\); choose another place with --data"):
        Files(tmp_path / "file" / "data")
    for content, reason in ((b"no database" * 100, "not a database"), (None, "is of version 99, and this server")):
        files = Files(tmp_path / "data")
        file = tmp_path / "data" / "jobs.sqlite"
        if content is None:
            file.unlink()
            with sqlite3.connect(file) as made:
                made.execute("PRAGMA user_version = 99")
            made.close()
        else:
            file.write_bytes(content)
        with pytest.raises(InputError, match=reason):
            files.open_store()
        files.close()


def test_a_character_where_there_are_no_links(tmp_path, monkeypatch):
    """A video keeps its person, as a copy."""
    files = Files(tmp_path)
    files.write("character", "char_abc", b"a person")

    def link(*given):
        raise OSError("no links here")

    monkeypatch.setattr(data_files.os, "link", link)
    files.share("char_abc", "video_abc")
    files.remove(("character",), "char_abc")
    assert files.path("identity", "video_abc").read_bytes() == b"a person"
    files.close()


def delete_and_fail(db):
    assert db.execute("DELETE FROM videos").rowcount == 1
    db.execute("DELETE FROM nothing")


def test_a_change_that_fails_is_none(tmp_path):
    with scheduled(tmp_path, StandIn(slots=0)) as service:
        id = ask(service)
        with pytest.raises(sqlite3.OperationalError), service.store._change() as db:
            delete_and_fail(db)
        assert service.store.video(id) is not None


def answers(app, scope):
    """What a guarded application sends."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    base = {"type": "http", "path": "/", "method": "GET", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(app, Keys(), Limits())(base | scope, receive, send))
    return sent


def test_a_refusal_from_within():
    """It is the answer, unless that has begun; a socket is closed."""
    refusal = Refusal(418, "tea", "This is a pot.", headers={"x-why": "tea"})

    async def early(scope, receive, send):
        raise refusal

    async def late(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise refusal

    start, body = answers(early, {})
    assert (start["status"], dict(start["headers"])[b"x-why"]) == (418, b"tea")
    assert b"This is a pot." in body["body"]
    with pytest.raises(Refusal):
        answers(late, {})
    assert answers(early, {"type": "websocket"}) == [{"type": "websocket.close", "code": 1008}]
    elsewhere = {"headers": [(b"host", b"elsewhere.example")], "type": "websocket"}
    assert answers(late, elsewhere) == [{"type": "websocket.close", "code": 1008}]


def mp4(frames, width=64, height=48):
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as made:
        stream = made.add_stream("mpeg4", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            picture = np.full((height, width, 3), 10 * i, np.uint8)
            made.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        made.mux(stream.encode(None))
    return file.getvalue()


def test_frames_of_a_video():
    """So many as photos may be, evenly spread; and what of it cannot be read."""
    limits = Limits(photos=3, pixels=64 * 48)
    pictures = [np.asarray(Image.open(io.BytesIO(content))) for content in frames_of(mp4(12), limits, "video")]
    assert [picture.mean() for picture in pictures] == pytest.approx([0, 40, 80], abs=5)  # the first, fifth and ninth
    assert len(frames_of(mp4(2), limits, "video")) == 2
    whole = mp4(3)
    for content, message in (
        (mp4(3, 80, 64), "The frames of this video are too large"),
        (whole[: len(whole) // 8], "The video cannot be read"),
        (mp4(0), "The video has no frames|The video cannot be read"),
    ):
        with pytest.raises(Refusal, match=message) as refused:
            frames_of(content, limits, "video")
        assert refused.value.status == 400


def test_fields_that_are_odd():
    fields = [("characters[][id]", "a"), ("characters[0][id]", "b"), ("input_reference[image_url]", "c"), ("seed", "1")]
    assert unbracketed(fields) == {
        "characters": [{"id": "a"}, {"id": "b"}], "input_reference": {"image_url": "c"}, "seed": "1"
    }  # fmt: skip
    with pytest.raises(Refusal, match="The field 'seed' is there twice"):
        unbracketed([("seed", "1"), ("seed", "2")])
    assert cache_of("0.1") == 0.1
    for odd in ("often", "nan", -1.0):
        with pytest.raises(Refusal) as refused:
            cache_of(odd)
        assert (refused.value.status, refused.value.body["error"]["param"]) == (400, "cache")


def test_keys_that_cannot_be_read(tmp_path):
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as a file of API keys"):
        Keys.read(tmp_path / "keys")
    assert [is_loopback(host) for host in ("localhost", "127.3.2.1", "::1", "0.0.0.0", "example.org")] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_nothing_changes_for_a_while(tmp_path):
    """Who watches hears so, that a proxy does not think the answer has ended."""
    with scheduled(tmp_path, StandIn(slots=0)) as service:
        id = ask(service)

        async def heard():
            found = []
            async for changed in service.board.changes(id, 0.01):
                found.append(changed)
                if len(found) == 3:
                    return found

        assert asyncio.run(heard()) == [True, False, False]


class Visitor:
    """Who is at the page."""

    request = SimpleNamespace(state=SimpleNamespace(owner="person 0"))


def test_a_page_of_videos_that_are_not_ready(tmp_path):
    """What waits, what is made and has no preview yet, what was stopped, and what is gone."""
    worker = StandIn()
    with scheduled(tmp_path, worker) as service:
        page, made, waits = Page(service), ask(service), ask(service)
        wait_until(lambda: worker.started == [made])
        worker.report(made, Begun(4), Stepped(1, 4))
        pictures = page.history(Visitor)
        assert f">{service.board.get(made).percent} %<" in pictures
        assert ">waits<" in pictures
        looks = page.watch("person 0", made)
        text, preview, id = next(looks)
        assert (preview, id) == ("", made)
        page.stop(None, Visitor)
        page.stop(made, Visitor)
        assert [each[2] for each in looks] == [None]
        assert "title='The video was cancelled.'" in page.history(Visitor)
        assert ">cancelled<" in page.history(Visitor)
        service.delete("person 0", waits)
        ((text, preview, id),) = page.watch("person 0", waits)
        assert ("The video was deleted." in text, preview, id) == (True, "", None)


def test_people_of_a_page_that_cannot_be_kept(tmp_path, photo, monkeypatch):
    worker = StandIn()

    def faces(content):
        raise FaceError("It is too dark.")

    monkeypatch.setattr(worker, "faces", faces)
    (tmp_path / "photo.png").write_bytes(photo)
    with scheduled(tmp_path / "data", worker) as service:
        page = Page(service)
        assert "It is too dark." in page.find(str(tmp_path / "photo.png"))[2]
        for upload, name in ((None, "Eileen"), (str(tmp_path / "photo.png"), "  ")):
            assert "Give a photo and a name to keep a person." in page.keep(upload, -1, name, Visitor)[0]
        assert page.people("person 0") == [("", "")]
        text, people = page.keep(str(tmp_path / "photo.png"), -1, " Eileen ", Visitor)
        assert "Eileen is kept." in text
        assert people.value == dict(page.people("person 0"))["Eileen"]
        assert page.choose(SimpleNamespace(index=1)) == 1
