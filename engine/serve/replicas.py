"""The service under Ray Serve: one deployment answers clients, and one has a replica with an engine for each GPU.

Which replica takes a video, how many there are, and what replaces one that died is Ray's. What is this file's: a video
whose replica died is begun again, and goes on from its checkpoint. All replicas see the folder of data.
"""

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException, RequestCancelledError

from ..errors import ConsisIDError, InputError
from ..manifest import Manifest
from .app import create_app
from .flags import parser, settings_of
from .keys import Keys
from .local import open_workers
from .service import Service
from .settings import Settings
from .worker import Cancelled, FaceBox, Failed, Listener, Lost, Made, Model, Report, Task

LOG = logging.getLogger("consisid.serve")
LOCAL = "local"  # an address: Ray is started on this machine, for itself alone
APPLICATION = "consisid"
SMALL = 8  # requests besides videos that a replica takes at once: photos, checks
PATIENCE = 2.0  # seconds that a video waits in a replica without room, before Ray chooses again
T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """How many replicas there are: between `least` and `most`, by how many videos wait. gpus: of each."""

    least: int
    most: int
    gpus: float


@dataclass(frozen=True)
class Busy:
    """A replica has no room for a video, and did nothing about it."""


class Replica:
    """An engine in a process of Ray's."""

    def __init__(self, settings: Settings):
        (self.worker,) = open_workers(settings)
        self.room = asyncio.Semaphore(settings.ahead)

    async def ask(self, what: str, *given: Any) -> Any:
        """A method of the worker, or the error that it raised: errors lose their class on their way."""
        try:
            return await asyncio.to_thread(getattr(self.worker, what), *given)
        except ConsisIDError as error:
            return error

    async def make(self, task: Task) -> AsyncIterator[Report | Busy]:
        """What becomes of a video. Whoever no longer wants to hear it cancels it.

        Ray chooses by how many requests it believes a replica to have, and can be wrong. A video that stayed where it
        was sent would wait there while another replica has nothing to do, or a new one has started.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                await self.room.acquire()
        except TimeoutError:
            yield Busy()
            return
        try:
            async for report in self._make(task):
                yield report
        finally:
            self.room.release()

    async def _make(self, task: Task) -> AsyncIterator[Report]:
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[Report]()

        def listen(report: Report) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, report)

        self.worker.start(task, listen)
        try:
            while True:
                report = await heard.get()
                yield report
                if isinstance(report, Made | Failed | Cancelled | Lost):
                    return
        finally:
            self.worker.cancel(task.id)  # of one that has ended it is nothing

    async def check_health(self) -> None:
        """Ray replaces a replica that raises here."""
        if not self.worker.healthy():
            raise RuntimeError("the engine's thread has ended")


class RayWorker:
    """All replicas as one worker, in a loop of its own.

    Args:
        handle: of the deployment of replicas.
        slots: videos that are handed to Ray at once.
    """

    def __init__(self, handle: Any, slots: int):
        self._handle, self._slots = handle, slots
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ray", daemon=True)
        self._thread.start()
        self._streams: dict[str, Any] = {}
        self._cancelled: set[str] = set()

    def _run(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _ask(self, what: str, *given: Any) -> Any:
        async def ask() -> Any:
            return await self._handle.ask.remote(what, *given)

        found = self._run(ask()).result()
        if isinstance(found, ConsisIDError):
            raise found
        return found

    @property
    def slots(self) -> int:
        return self._slots

    def model(self) -> Model:
        found: Model = self._ask("model")
        return found

    def check(self, prompt: str, options: Mapping[str, Any], loras: Mapping[str, float]) -> tuple[int, int, int]:
        height, width, frames = self._ask("check", prompt, dict(options), dict(loras))
        return height, width, frames

    def identify(self, photos: Sequence[bytes], face: Any) -> tuple[bytes, bytes]:
        person, picture = self._ask("identify", list(photos), face)
        return person, picture

    def faces(self, photo: bytes) -> list[FaceBox]:
        found: list[FaceBox] = self._ask("faces", photo)
        return found

    def start(self, task: Task, listen: Listener) -> None:
        self._run(self._make(task, listen))

    async def _make(self, task: Task, listen: Listener) -> None:
        report: Report | None = None
        try:
            async for report in self._reports(task):
                await asyncio.to_thread(listen, report)
        except (RequestCancelledError, asyncio.CancelledError):
            report = None
            await asyncio.to_thread(listen, Cancelled())
            return
        except RayTaskError as error:
            LOG.exception("a replica failed at %s", task.id)
            report = Failed("server_error", f"The replica failed at this video ({type(error).__name__}).")
            await asyncio.to_thread(listen, report)
        except (RayError, RayServeException) as error:
            report = Lost(f"The replica is gone ({type(error).__name__}).")
            await asyncio.to_thread(listen, report)
        finally:
            self._streams.pop(task.id, None)
            self._cancelled.discard(task.id)
        if not isinstance(report, Made | Failed | Cancelled | Lost):
            await asyncio.to_thread(listen, Lost("The replica said no more."))

    async def _reports(self, task: Task) -> AsyncIterator[Report]:
        """Of a replica that has room."""
        busy = True
        while busy:
            self._streams[task.id] = stream = self._handle.options(stream=True).make.remote(task)
            if task.id in self._cancelled:
                stream.cancel()
            busy = False
            async for report in stream:
                busy = isinstance(report, Busy)
                if not busy:
                    yield report

    def cancel(self, id: str) -> None:
        def cancel() -> None:
            self._cancelled.add(id)
            if id in self._streams:
                self._streams[id].cancel()

        self._loop.call_soon_threadsafe(cancel)

    def healthy(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        for id in list(self._streams):
            self.cancel(id)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class Front:
    """What clients speak to. There is one: the store has one writer."""

    def __init__(self, settings: Settings, slots: int, replicas: Any):
        self.service = Service(settings, Keys.read(settings.keys), [RayWorker(replicas, slots)])

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.service)


def bound(settings: Settings, scale: Scale) -> Any:
    """The Ray Serve application."""
    engines = serve.deployment(
        Replica,
        max_ongoing_requests=2 * settings.ahead + SMALL,
        autoscaling_config={
            "min_replicas": scale.least, "max_replicas": scale.most, "target_ongoing_requests": settings.ahead,
        },
        ray_actor_options={"num_cpus": settings.per_video, "num_gpus": scale.gpus},
        graceful_shutdown_timeout_s=10,
    )  # fmt: skip
    front = serve.deployment(
        serve.ingress()(Front), max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=10,
    )  # fmt: skip
    return front.bind(settings, scale.most * settings.ahead, engines.bind(settings))


def scale_of(settings: Settings, replicas: Sequence[int], gpus: float | None) -> Scale:
    """Raises InputError for numbers of replicas that cannot be."""
    least, most = min(replicas), max(replicas)
    if len(replicas) > 2 or least < 1:
        raise InputError("--replicas takes a number of 1 or more, or the least and the most.")
    if settings.devices:
        raise InputError("--devices goes without --ray, which gives each replica a GPU of its own.")
    if gpus is None:
        gpus = settings.per_video * float(Manifest.read(settings.folder).spec.device.startswith("cuda"))
    return Scale(least, most, gpus)


def application(arguments: dict[str, Any]) -> Any:
    """For `serve deploy`: the application from the flags of consisid-serve, by their names; `engine` is the folder."""
    words = [str(arguments["engine"])]
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "engine" or value is False:
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [flag, *map(str, values)]
    options = parser().parse_args(words)
    settings = settings_of(options)
    return bound(settings, scale_of(settings, options.replicas, options.gpus))


def run(settings: Settings, host: str, port: int, address: str, scale: Scale) -> None:
    """Serve until an interrupt.

    Args:
        address: of a cluster, or LOCAL.

    Raises:
        InputError: no port was given.
    """
    if not port:
        raise InputError("--ray needs a --port of its own, such as 8000.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if address == LOCAL:
        ray.init(address=LOCAL, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    else:
        ray.init(address=address)
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(bound(settings, scale), name=APPLICATION)
        print(
            f"consisid-serve: http://{host}:{port}/ serves {settings.folder.name} with Ray", file=sys.stderr, flush=True
        )
        threading.Event().wait()
    finally:
        serve.shutdown()
        ray.shutdown()
