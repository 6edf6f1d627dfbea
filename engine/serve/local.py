"""A worker in this process: one thread makes the videos of an engine's queue."""

import io
import logging
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock, Thread
from typing import Any

import numpy as np
from PIL import Image

from ..api import ConsisID
from ..errors import ConsisIDError, EngineError, FaceError, InputError, RankError, shown
from ..face.detection import detect_retinaface
from ..face.identity import Identity
from ..face.photo import load_photo
from ..face.selection import join
from ..many.jobs import Job, VideoRequest
from ..many.queue import VideoQueue
from ..run.options import Options
from ..run.recovery import outside_runs
from ..run.request import Request
from ..util.files import sha256
from .previews import Preview
from .refusals import code_of, sentence
from .settings import Settings
from .worker import Begun, Cancelled, FaceBox, Failed, Listener, Lost, Made, Model, Report, Stepped, Task

LOG = logging.getLogger("consisid.serve")
KEPT = 32  # people that were loaded
MARGIN = 0.35  # of a face's size around it, in a picture of it


@dataclass(eq=False)
class Entry:
    """A task that was started. job: once its person is known."""

    task: Task
    listen: Listener
    job: Job | None = None
    cancelled: bool = False


class Waiting(VideoQueue):
    """A queue that says which job begins. The service bounds what it accepts."""

    def __init__(self, begins: Callable[[Job], None]):
        super().__init__()
        self._begins = begins

    def take(self, job: Job) -> None:
        super().take(job)
        self._begins(job)


class LocalWorker:
    """An engine, opened on one device. Looking at photos takes turns with the steps of videos.

    Raises:
        ConsisIDError: it cannot be opened, or a LoRA not be loaded.
    """

    def __init__(self, settings: Settings, device: str | Sequence[str] | int | None = None):
        self.settings = settings
        place: dict[str, Any] = {"device" if isinstance(device, str | None) else "devices": device}
        self.engine = ConsisID.open(settings.folder, memory=settings.memory, **place)
        for name, source in settings.loras.items():
            self.engine.load_lora_weights(source, adapter_name=name)
        self._loras: Mapping[str, float] | None = None  # of the videos under way
        self.preview = Preview.fit(self.engine)
        self.queue = Waiting(self._begins)
        self._lock = RLock()
        self._entries: dict[str, Entry] = {}
        self._ready = deque[tuple[Entry, Identity]]()  # for their turn, behind videos with other LoRAs
        self._jobs: dict[Job, Entry] = {}
        self._known = dict[str, Identity]()  # by the hash of their files, the one that was used last at the end
        self._fault: Exception | None = None
        self._people = ThreadPoolExecutor(1, thread_name_prefix="people")
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
        self._people.submit(self._prepare, entry)

    def _prepare(self, entry: Entry) -> None:
        """Who is meant; then it is ready."""
        task = entry.task
        try:
            person = self._person(Path(task.person), task)
        except Exception as error:
            self._end(entry, failed(error))
            return
        with self._lock:
            self._ready.append((entry, person))
        self._feed()

    def _person(self, file: Path, task: Task) -> Identity:
        """The same object for the same person, whose features the engine then has already."""
        if not task.identified:
            return self._identified(file.read_bytes(), task.face)
        known = sha256(file)
        person = self._known.pop(known, None) or Identity.load(file)
        self._known[known] = person
        while len(self._known) > KEPT:
            del self._known[next(iter(self._known))]
        return person

    def _feed(self) -> None:
        """Hand what is ready to the engine, as far as its LoRAs are those of the videos under way."""
        dropped = []
        with self._lock:
            while self._ready:
                entry, person = self._ready[0]
                loras = entry.task.loras
                if self._jobs and loras != self._loras:
                    break
                self._ready.popleft()
                if entry.cancelled:
                    dropped.append(entry)
                    continue
                if loras != self._loras:
                    self.engine.set_adapters(list(loras), list(loras.values()))
                    self._loras = loras
                task = entry.task
                request = VideoRequest(
                    person, task.prompt, **task.options, checkpoint=task.checkpoint,
                    checkpoint_every=self.settings.checkpoint_every,
                )  # fmt: skip
                entry.job = job = Job(request)
                job.on_step = partial(self._stepped, entry)
                self._jobs[job] = entry
                self.queue.put(job)
        for entry in dropped:
            self._end(entry, Cancelled())

    def _begins(self, job: Job) -> None:
        entry = self._jobs[job]
        entry.listen(Begun(entry.task.options.get("num_inference_steps", 0)))

    def _stepped(self, entry: Entry, job: Job, step: int, latents: Any) -> None:
        """After a step, in the engine's thread."""
        wanted = (step + 1) % self.settings.preview_every == 0
        entry.listen(Stepped(step + 1, job.steps, self.preview.jpeg(latents) if wanted else None))

    def cancel(self, id: str) -> None:
        with self._lock:
            entry = self._entries.get(id)
            if entry is None:
                return
            entry.cancelled = True
            if entry.job is not None:
                entry.job.cancel()
        self._feed()

    def _make_videos(self) -> None:
        try:
            for job in self.engine.generate_many(self.queue):
                with self._lock:
                    entry = self._jobs.pop(job)
                if job.state == "done":
                    self._files.submit(self._save, entry, job.video)
                elif isinstance(job.error, RankError):
                    raise job.error  # the engine is gone with its devices; whoever opens it again goes on
                elif job.state == "failed" and job.error is not None:
                    self._end(entry, failed(job.error))
                else:
                    self._end(entry, Cancelled())
                self._feed()
        except Exception as error:
            LOG.exception("the engine's thread ended")
            self._fault = error
            for entry in list(self._entries.values()):
                self._end(entry, Lost(f"The engine stopped ({type(error).__name__})."))

    def _save(self, entry: Entry, video: Any) -> None:
        """Write the files of a video, in a thread of their own."""
        task = entry.task
        try:
            video.save(task.thumbnail)
            video.save(task.video, task.fps)
            frames, height, width = video.shape
            facts = {"frames": frames, "height": height, "width": width, "peak_bytes": video.stats.peak_bytes}
            report: Report = Made(dict(video.stats.seconds), facts)
        except Exception as error:
            report = failed(error)
        self._end(entry, report)

    def _end(self, entry: Entry, report: Report) -> None:
        with self._lock:
            if self._entries.pop(entry.task.id, None) is None:
                return
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
                self._identified(photo, face)
                found.append(photo)
            except FaceError as error:
                last = error
        if not found:
            raise last or InputError("There is no photo; give at least one.")
        person = self._identified(found, face)
        with tempfile.TemporaryDirectory() as folder:
            content = person.save(Path(folder) / "person.safetensors").read_bytes()
        return content, jpeg(person.preview())

    def faces(self, photo: bytes) -> list[FaceBox]:
        pixels = load_photo(photo)
        height, width = pixels.shape[:2]
        image = np.ascontiguousarray(pixels[..., ::-1])
        with outside_runs(self.engine, "looking at the photo", "Give a smaller photo."):
            models = self.engine.faces
            people = join(detect_retinaface(models.retinaface, image), models.scrfd(image), height, width)
        found = []
        for person in people:
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
        self._people.shutdown()
        self.queue.close()
        self._thread.join()
        self._files.shutdown()
        self.engine.close()


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
    """An engine on each device, or one on several; raises EngineError for devices that do not fit."""
    count = settings.per_video
    if count > 1:
        if settings.devices and len(settings.devices) != count:
            raise EngineError(f"--per-video {count} takes so many --devices, one engine's; for more of them add --ray.")
        return [LocalWorker(settings, settings.devices or count)]
    if len(set(settings.devices)) < len(settings.devices):
        raise EngineError(f"--devices {' '.join(settings.devices)}: each device can be named once.")
    return [LocalWorker(settings, device) for device in settings.devices or (None,)]
