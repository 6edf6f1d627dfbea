"""The page for people: a photo, a prompt, and the video as it comes to be. Gradio, mounted into the application."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from PIL import Image

from ..errors import ConsisIDError, InputError
from ..util.cli import installed_version
from . import page_html as html
from .service import STEPS, Person, Service
from .store import ENDED
from .wanted import fields_of

EXAMPLES = (
    "A person walks through fresh snow at dusk, breath visible in the cold air, and turns to the viewer with a smile.",
    "A close view of a person in a sunlit kitchen, laughing while pouring coffee, steam rising in front of a window.",
    "An astronaut in an orange suit waves from a hangar, flags moving slowly in the wind behind them.",
)
LOOK = 0.2  # seconds between two looks at a video that is made
SHOWN = 12  # videos of the history
REFRESH = 5.0  # seconds between two looks at the history
NOBODY = -1


def content_of(upload: str | None) -> bytes | None:
    """The bytes of a file that Gradio has taken, and whose place it has checked."""
    return None if upload is None else Path(upload).read_bytes()


def which(face: int) -> str:
    """A face by its number, as clients write it."""
    return "largest" if face == NOBODY else str(face)


def owner_of(request: gr.Request) -> str:
    """Who is at the page, as the guard found out."""
    return str(request.request.state.owner)


class Page:
    """The handlers of the page."""

    def __init__(self, service: Service):
        self.service = service

    def find(self, upload: str | None) -> tuple[Any, Any, str]:
        """The faces in a photo: pictures to choose from, the number of the largest, and a sentence."""
        photo = content_of(upload)
        if photo is None:
            return gr.Gallery([], visible=False), NOBODY, ""
        try:
            faces = self.service.faces(photo)
            if not faces:
                raise InputError("No face was found; give a photo where it is sharp, upright and well lit.")
        except ConsisIDError as error:
            return gr.Gallery([], visible=False), NOBODY, html.fault(str(error))
        pictures = [(Image.open(io.BytesIO(face.crop)), f"face {i + 1}") for i, face in enumerate(faces)]
        areas = [(face.box[2] - face.box[0]) * (face.box[3] - face.box[1]) for face in faces]
        largest = areas.index(max(areas))
        one = "This face was found." if len(faces) == 1 else f"{len(faces)} faces were found; choose who is meant."
        return gr.Gallery(pictures, visible=True, selected_index=largest), largest, html.said(one)

    @staticmethod
    def choose(chosen: gr.SelectData) -> int:
        return int(chosen.index)

    def make(
        self, upload: str | None, face: int, character: str | None, prompt: str | None, negative: str | None,
        steps: float, guidance: float, seed: int | None, frames: int | None, cache: str | None, lora: str | None,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any, str | None]]:  # fmt: skip
        """The progress of a new video, what is seen of it, and its id."""
        owner, photo = owner_of(request), content_of(upload)
        values = {
            "prompt": prompt or "", "face": which(face), "negative_prompt": negative or None,
            "num_inference_steps": int(steps), "guidance_scale": guidance, "seed": seed, "num_frames": frames or None,
            "cache": cache or None, "lora": lora or None,
        }  # fmt: skip
        try:
            if not (prompt or "").strip():
                raise InputError("Say what the person does: the prompt is empty.")
            fields = fields_of(values)
            if photo is None and not character:
                raise InputError("Give a photo, or choose a stored person.")
            if character and photo is None:
                person = Person(character=character)
            else:
                person = Person(photo=self.service.photos.check(photo or b"", "photo"))
            id = self.service.create(owner, fields, person).id
        except ConsisIDError as error:
            yield html.fault(str(error)), "", None
            return
        yield from self.watch(owner, id)

    def watch(self, owner: str, id: str) -> Iterator[tuple[Any, Any, str | None]]:
        """Until it has ended."""
        before: Any = None
        while True:
            row = self.service.store.video(id, owner)
            if row is None:
                yield html.said("The video was deleted."), "", None
                return
            progress = self.service.board.get(id)
            if row.status in ENDED:
                yield (*html.ended(row), None)
                return
            if (row.status, progress) != before:
                before = row.status, progress
                yield html.working(row, progress), html.preview(progress), id
            time.sleep(LOOK)

    def stop(self, id: str | None, request: gr.Request) -> None:
        if id is not None:
            self.service.cancel(owner_of(request), id)

    def keep(self, upload: str | None, face: int, name: str | None, request: gr.Request) -> tuple[str, Any]:
        """Store the person in the photo; a sentence, and the people to choose from."""
        owner, photo, name = owner_of(request), content_of(upload), (name or "").strip()
        try:
            if photo is None or not name:
                raise InputError("Give a photo and a name to keep a person.")
            checked = self.service.photos.check(photo, "photo")
            made = self.service.create_character(owner, name[:200], [checked], which(face))
        except ConsisIDError as error:
            return html.fault(str(error)), gr.skip()
        return html.said(f"{made.name} is kept."), gr.Dropdown(self.people(owner), value=made.id)

    def people(self, owner: str) -> list[tuple[str, str]]:
        rows = self.service.store.characters(owner, None, 100, newest_first=True)
        return [("", ""), *((row.name, row.id) for row in rows)]

    def history(self, request: gr.Request) -> str:
        rows = self.service.store.videos(owner_of(request), None, SHOWN, newest_first=True)
        return html.history(rows, self.service.board)

    def arrive(self, request: gr.Request) -> tuple[Any, str]:
        return gr.Dropdown(self.people(owner_of(request))), self.history(request)

    def blocks(self) -> gr.Blocks:
        """The page."""
        model, service = self.service.model, self.service
        with gr.Blocks(title="ConsisID", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
            face, running = gr.State(NOBODY), gr.State(None)
            gr.Markdown(f"# ConsisID\nOne photo and a prompt become a video of that person. `{service.name}`")
            with gr.Row():
                with gr.Column():
                    photo = gr.Image(
                        label="Photo", type="filepath", image_mode=None, sources=["upload", "webcam", "clipboard"],
                        height=280, elem_id="photo", buttons=[],
                    )  # fmt: skip
                    told = gr.HTML(elem_id="told")
                    faces = gr.Gallery(
                        label="Faces", visible=False, columns=4, height=200, allow_preview=False, elem_id="faces",
                        object_fit="contain", buttons=[], interactive=False, fit_columns=False,
                    )  # fmt: skip
                    prompt = gr.Textbox(label="Prompt", lines=3, elem_id="prompt", placeholder=EXAMPLES[0])
                    gr.Examples([[text] for text in EXAMPLES], [prompt], label="Examples", cache_examples=False)
                    with gr.Accordion("Settings", open=False):
                        negative = gr.Textbox(label="Negative prompt")
                        steps = gr.Slider(1, 100, STEPS, step=1, label="Steps", elem_id="steps")
                        guidance = gr.Slider(1, 12, 6, step=0.5, label="Guidance")
                        seed = gr.Number(None, label="Seed (empty: drawn)", precision=0)
                        frames = gr.Number(None, label=f"Frames (empty: {model.num_frames})", precision=0)
                        cache = gr.Dropdown(
                            [("exact", ""), ("0.1", "0.1"), ("0.15", "0.15"), ("0.25", "0.25")], value="",
                            label="Step cache",
                        )  # fmt: skip
                        lora = gr.Dropdown(["", *model.loras], value="", label="LoRA", visible=bool(model.loras))
                    with gr.Accordion("People that were kept", open=False):
                        character = gr.Dropdown([("", "")], value="", label="Instead of a photo")
                        name = gr.Textbox(label="Keep the person in the photo as")
                        kept = gr.Button("Keep")
                    with gr.Row():
                        start = gr.Button("Make the video", variant="primary", elem_id="make")
                        stop = gr.Button("Stop", elem_id="stop")
                with gr.Column():
                    progress = gr.HTML(elem_id="progress")
                    seen = gr.HTML(elem_id="seen")
                    gr.Markdown("### Your videos")
                    history = gr.HTML(elem_id="history")
            gr.Markdown(f"<small>consisid {installed_version()}</small>")

            quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
            photo.change(self.find, [photo], [faces, face, told], concurrency_limit=8, **quiet)
            faces.select(self.choose, None, [face], **quiet)
            settings = [prompt, negative, steps, guidance, seed, frames, cache, lora]
            start.click(
                self.make, [photo, face, character, *settings], [progress, seen, running], concurrency_limit=64, **quiet
            ).then(self.history, None, [history], **quiet)
            stop.click(self.stop, [running], None, concurrency_limit=8, **quiet)
            kept.click(self.keep, [photo, face, name], [told, character], concurrency_limit=8, **quiet)
            page.load(self.arrive, None, [character, history], **quiet)
            gr.Timer(REFRESH).tick(self.history, None, [history], **quiet)
        page.queue(max_size=256)
        return page


def add_page(app: FastAPI, service: Service) -> None:
    """Mount the page at /. It loads nothing from elsewhere."""

    def who(request: Request) -> str:
        return str(request.state.owner)

    own = ["system-ui", "sans-serif"]
    gr.mount_gradio_app(
        app, Page(service).blocks(), path="/", auth_dependency=who, ssr_mode=False, footer_links=[],
        max_file_size=service.settings.limits.body, blocked_paths=[str(service.settings.data)], show_error=False,
        enable_monitoring=False, mcp_server=False, css=html.STYLE, theme=gr.themes.Default(font=own, font_mono=own),
    )  # fmt: skip
