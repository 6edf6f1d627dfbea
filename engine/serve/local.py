"""A worker in this process: one thread makes the videos of an engine's queue."""

import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..api import ConsisID
from ..errors import ConsisIDError, EngineError, FaceError, InputError, shown
from ..face.detection import detect_retinaface
from ..face.identity import Identity
from ..face.photo import load_photo
from ..face.selection import join
from ..run.options import Options
from ..run.recovery import outside_runs
from ..run.request import Request
from .errands import Errands
from .previews import Preview
from .queueing import VideoJob, VideoQueue, VideoRequest, generate_many
from .refusals import code_of, sentence
from .settings import Settings
from .worker import Begun, Cancelled, FaceBox, Failed, Listener, Lost, Made, Model, Report, Stepped, Task

LOG = logging.getLogger("consisid.serve")
T = TypeVar("T")
MARGIN = 0.35  # of a face's size around it, in a picture of it


@dataclass(eq=False)
class Entry:
    """A task that was started. job: once its person is known."""

    task: Task
    listen: Listener
    job: VideoJob | None = None
    cancelled: bool = False
    begun: bool = False
    lock: Lock = field(default_factory=Lock)


class LocalWorker:
    """An engine, opened on one device.

    Raises:
        ConsisIDError: it cannot be opened, or a LoRA not be loaded.
    """

    def __init__(self, settings: Settings, device: str | None = None):
        self.settings = settings
        self.engine = ConsisID.open(settings.folder, device, memory=settings.memory)
        for name, source in settings.loras.items():
            self.engine.load_lora_weights(source, adapter_name=name)
        if settings.loras:
            self.engine.disable_lora()
        self.preview = Preview.fit(self.engine)
        self.queue = VideoQueue(limit=2**20)  # the service bounds what it accepts
        self._entries: dict[str, Entry] = {}
        self._lock = Lock()
        self._fault: Exception | None = None
        self._errands = Errands(self.engine.turn)
        self._files = ThreadPoolExecutor(1, thread_name_prefix="files")  # encoding an mp4 holds no device
        self._thread = Thread(target=self._make_videos, name="engine", daemon=True)
        self._thread.start()

    @property
    def slots(self) -> int:
        return self.settings.ahead

    def model(self) -> Model:
        engine, shape = self.engine, self.engine.shape
        return Model(
            engine.variant.name, shape.height, shape.width, shape.num_frames, engine.variant.fps, str(engine.device),
            tuple(self.settings.loras),
        )  # fmt: skip

    def check(self, prompt: str, options: Mapping[str, Any], loras: Mapping[str, float]) -> tuple[int, int, int]:
        unknown = sorted(set(loras) - set(self.settings.loras))
        if unknown:
            known = ", ".join(self.settings.loras) or "none"
            raise InputError(f"There is no LoRA called {shown(unknown[0])} here; there are: {known}.")
        request = Request.check(self.engine, Options(prompt=prompt, **options))
        self.engine.networks(request.shape)  # a folder of compiled graphs makes one size
        return request.shape.pixels

    def start(self, task: Task, listen: Listener) -> None:
        entry = Entry(task, listen)
        with self._lock:
            self._entries[task.id] = entry
        person = Path(task.person)
        if task.identified:
            found: Future[Any] = Future()
            self._settle(found, lambda: Identity.load(person))
        else:
            found = self._errands.do(lambda: self._identified(person.read_bytes(), task.face))
        found.add_done_callback(lambda future: self._enqueue(entry, future))

    @staticmethod
    def _settle(future: "Future[T]", work: Callable[[], T]) -> None:
        try:
            future.set_result(work())
        except ConsisIDError as error:
            future.set_exception(error)

    def _enqueue(self, entry: Entry, person: "Future[Any]") -> None:
        """The person is known, or will not be."""
        task = entry.task
        if person.cancelled():
            return self._end(entry, Lost("The server was stopped."))
        unknown = person.exception()
        if unknown is not None:
            return self._end(entry, failed(unknown))
        with entry.lock:
            if not entry.cancelled:
                request = VideoRequest(
                    person.result(), task.prompt, **task.options, checkpoint=task.checkpoint,
                    checkpoint_every=self.settings.checkpoint_every,
                )  # fmt: skip
                try:
                    entry.job = self.queue.submit(request)
                except ConsisIDError as error:
                    return self._end(entry, failed(error))
                entry.job.on_step = lambda job, step, latents: self._stepped(entry, job, step, latents)
                return None
        return self._end(entry, Cancelled())

    def _stepped(self, entry: Entry, job: VideoJob, step: int, latents: Any) -> None:
        """After a step, in the engine's thread."""
        if not entry.begun:
            entry.begun = True
            entry.listen(Begun(job.steps))
        wanted = (step + 1) % self.settings.preview_every == 0
        entry.listen(Stepped(step + 1, job.steps, self.preview.jpeg(latents) if wanted else None))
        self._errands.run_waiting()

    def cancel(self, id: str) -> None:
        with self._lock:
            entry = self._entries.get(id)
        if entry is None:
            return
        with entry.lock:
            entry.cancelled = True
            job = entry.job
        if job is not None:
            job.cancel()

    def _make_videos(self) -> None:
        try:
            for job in generate_many(self.engine, self.queue):
                entry = self._entry_of(job)
                if entry is None:
                    continue
                if job.state == "done":
                    self._files.submit(self._save, entry, job)
                elif job.state == "failed" and job.error is not None:
                    self._end(entry, failed(job.error))
                else:
                    self._end(entry, Cancelled())
        except Exception as error:
            LOG.exception("the engine's thread ended")
            self._fault = error
            for entry in list(self._entries.values()):
                self._end(entry, Lost(f"The engine stopped ({type(error).__name__})."))

    def _entry_of(self, job: VideoJob) -> Entry | None:
        with self._lock:
            return next((entry for entry in self._entries.values() if entry.job is job), None)

    def _save(self, entry: Entry, job: VideoJob) -> None:
        """Write the files of a video, in a thread of their own."""
        task, video = entry.task, job.video
        try:
            video.save(task.thumbnail)
            video.save(task.video, task.fps)
            frames, height, width = video.shape
            facts = {"frames": frames, "height": height, "width": width, "fps": task.fps or video.fps,
                     "peak_bytes": video.stats.peak_bytes}  # fmt: skip
            report: Report = Made(dict(video.stats.seconds), facts)
        except Exception as error:
            report = failed(error)
        self._end(entry, report)

    def _end(self, entry: Entry, report: Report) -> None:
        with self._lock:
            if self._entries.pop(entry.task.id, None) is None:
                return
        if entry.job is not None:
            entry.job.on_step = None
        entry.listen(report)

    def _identified(self, content: Any, face: Any) -> Identity:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of several faces: whoever asks has chosen, or may
            return self.engine.identify(content, face=face)

    def identify(self, photos: Sequence[bytes], face: Any) -> tuple[bytes, bytes]:
        """Of several photos those without a face do not count, as long as one has one."""
        found, last = list[bytes](), None
        for photo in photos:
            try:
                self._errands.do(lambda photo=photo: self._identified(photo, face)).result()  # type: ignore[misc]
                found.append(photo)
            except FaceError as error:
                last = error
        if not found:
            raise last or InputError("There is no photo; give at least one.")
        person = self._errands.do(lambda: self._identified(found, face)).result()
        with tempfile.TemporaryDirectory() as folder:
            content = person.save(Path(folder) / "person.safetensors").read_bytes()
        return content, jpeg(person.preview())

    def faces(self, photo: bytes) -> list[FaceBox]:
        pixels = load_photo(photo)
        height, width = pixels.shape[:2]
        models, image = self.engine.faces, np.ascontiguousarray(pixels[..., ::-1])

        def detect() -> Any:
            with outside_runs(self.engine, "looking at the photo", "Give a smaller photo."):
                return join(detect_retinaface(models.retinaface, image), models.scrfd(image), height, width)

        found = []
        for person in self._errands.do(detect).result():
            x0, y0, x1, y1 = (float(side) for side in person.box)
            around = MARGIN * max(x1 - x0, y1 - y0)
            corners = (max(0, x0 - around), max(0, y0 - around), min(width, x1 + around), min(height, y1 + around))
            crop = Image.fromarray(pixels).crop(tuple(int(side) for side in corners))  # type: ignore[arg-type]
            found.append(FaceBox((x0 / width, y0 / height, x1 / width, y1 / height), jpeg(crop)))
        return found

    def healthy(self) -> bool:
        return self._fault is None and self._thread.is_alive()

    def close(self) -> None:
        for id in list(self._entries):
            self.cancel(id)
        self.queue.close()
        self._thread.join()
        self._errands.close()
        self._files.shutdown()


def failed(error: BaseException) -> Failed:
    """Why there is no video; what we did not foresee is said in the log only."""
    if isinstance(error, ConsisIDError):
        return Failed(code_of(error), sentence(error))
    LOG.error("a video failed", exc_info=error)
    return Failed("server_error", "The server failed at this video; its log says where.")


def jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()


def open_workers(settings: Settings) -> list[LocalWorker]:
    """An engine on each device.

    Raises:
        EngineError: the same device twice.
    """
    if len(set(settings.devices)) < len(settings.devices):
        raise EngineError(f"--devices {' '.join(settings.devices)}: each device can be named once.")
    return [LocalWorker(settings, device) for device in settings.devices or (None,)]
