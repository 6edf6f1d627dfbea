"""The page: what its handlers answer, and what a person sees in a browser."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.people import png
from support.serving import KEY, running, wait_until

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def paged(shallow_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "keys").write_text(f"person {KEY.replace(' ', '-')}\n")
    with running(shallow_folder, folder / "data", keys=folder / "keys", page=True) as found:
        yield found


@pytest.fixture(scope="module")
def page(paged):
    from consisid.engine.serve.page import Page

    return Page(paged.service)


class Visitor:
    """Who is at the page."""

    class request:
        class state:
            owner = "person"


def make(page, **changes):
    fields = {
        "upload": None, "face": -1, "character": "", "prompt": "A woman.", "negative": "", "steps": 2.0, "guidance": 6,
        "seed": 1, "frames": 9, "cache": "", "lora": "", "request": Visitor, **changes,
    }  # fmt: skip
    return list(page.make(**fields))


def test_a_video_as_the_page_makes_it(page, photo, tmp_path):
    upload = tmp_path / "photo.png"
    upload.write_bytes(photo)
    gallery, largest, told = page.find(upload)
    assert (len(gallery.value), largest, told) == (1, 0, "<p role='status'>This face was found.</p>")
    seen = make(page, upload=upload, face=largest, steps=30.0)
    assert any("step " in progress and "data:image/jpeg" in shown for progress, shown, _ in seen)
    progress, shown, id = seen[-1]
    assert progress.startswith("<p role='status'>Ready in ")
    assert "<video" in shown
    assert id is None
    kept, people = page.keep(upload, largest, "Eileen <b>", Visitor)
    assert kept == "<p role='status'>Eileen &lt;b&gt; is kept.</p>"
    assert make(page, character=people.value, prompt="<script>")[-1][0].startswith("<p role='status'>Ready")
    assert "&lt;script&gt;" in page.history(Visitor)
    assert "<script>" not in page.history(Visitor)


def test_two_people_and_the_choice_between_them(page, photo, tmp_path):
    face = Image.open(io.BytesIO(photo)).convert("RGB").crop((130, 0, 330, 240))
    both = Image.new("RGB", (640, 300), "white")
    both.paste(face.resize((150, 180)), (40, 60))
    both.paste(face.resize((240, 288)), (360, 6))
    both.save(tmp_path / "both.png")
    gallery, largest, told = page.find(tmp_path / "both.png")
    assert (len(gallery.value), largest) == (2, 1)
    assert "2 faces were found; choose who is meant." in told


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "Give a photo, or choose a stored person."),
        ({"upload": "README.md"}, "The photo: is not an image that can be read"),
        ({"prompt": "  ", "upload": "README.md"}, "Say what the person does: the prompt is empty."),
        ({"character": "char_0"}, "There is no such character."),
        ({"character": "char_0", "frames": 10}, "num_frames=10 is not of the form 8k + 1"),
    ],
)
def test_sentences_for_what_cannot_be(page, changes, sentence, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    ((told, shown, id),) = make(page, **changes)
    assert told.startswith("<p role='alert' class='consisid-fault'>")
    assert sentence in told
    assert (shown, id) == ("", None)


def test_a_photo_without_a_face(page, tmp_path):
    (tmp_path / "grey.png").write_bytes(png(np.full((200, 200, 3), 90, np.uint8)))
    _, face, told = page.find(tmp_path / "grey.png")
    assert face == -1
    assert "No face was found; give a photo where it is sharp" in told


@pytest.mark.full
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; on Debian: apt-get install chromium")
def test_a_person_at_the_page(paged, photo, tmp_path):
    """Uploads a photo, sees the face, makes a video and sees it play; loads nothing from elsewhere. Screenshots stay
    in the folder of the test."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (tmp_path / "me.png").write_bytes(photo)
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            http_credentials={"username": "me", "password": KEY.replace(" ", "-")},
            viewport={"width": 1280, "height": 1000},
        )  # fmt: skip
        view, asked, faults = context.new_page(), [], []
        view.on("request", lambda request: asked.append(request.url))
        view.on("pageerror", lambda error: faults.append(str(error)))
        view.goto(paged.address)
        view.locator("#photo input[type=file]").set_input_files(tmp_path / "me.png")
        view.locator("#told").get_by_text("This face was found.").wait_for(timeout=60_000)
        view.locator("#faces img").first.wait_for(timeout=20_000)
        view.screenshot(path=tmp_path / "1-face.png")
        view.locator("#prompt textarea").fill("An astronaut smiles at the viewer.")
        view.locator("#make").click()
        view.locator("#seen img").wait_for(timeout=60_000)
        view.screenshot(path=tmp_path / "2-progress.png")
        view.locator("#video").wait_for(timeout=120_000)
        view.wait_for_function("() => document.querySelector('#video').currentTime > 0.5", timeout=20_000)
        assert view.evaluate("() => document.querySelector('#video').videoWidth") == 144
        view.wait_for_function("() => document.querySelector('#history img')?.naturalWidth == 144", timeout=20_000)
        view.screenshot(path=tmp_path / "3-video.png", full_page=True)
        view.locator("#make").click()
        view.locator("#progress").get_by_text("step ").wait_for(timeout=60_000)
        view.locator("#stop").click()
        view.locator("#progress").get_by_text("The video was cancelled.").wait_for(timeout=20_000)
        view.screenshot(path=tmp_path / "4-stopped.png")
        browser.close()
    elsewhere = [url for url in asked if not url.startswith((paged.address, "data:", "blob:"))]
    assert elsewhere == []
    assert faults == []
    assert all((Path(tmp_path) / name).stat().st_size > 5000 for name in ("1-face.png", "3-video.png"))
    wait_until(lambda: not paged.worker._entries)
