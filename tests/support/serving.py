"""A server of a test: in a thread of this process, at a free port of this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import openai
import uvicorn

from consisid.engine.serve.app import create_app
from consisid.engine.serve.keys import Keys, digest
from consisid.engine.serve.local import LocalWorker, open_workers
from consisid.engine.serve.process import listen
from consisid.engine.serve.service import Person, Service
from consisid.engine.serve.settings import Settings
from consisid.engine.serve.wanted import VideoFields
from consisid.engine.serve.worker import Begun, Cancelled, Listener, Made, Model, Report, Stepped, Task

KEY = "a key of the tests"


@dataclass
class Running:
    """A server. address: without a slash at its end."""

    address: str
    service: Service

    @property
    def worker(self) -> LocalWorker:
        return self.service.workers[0]

    def client(self, key: str = "nobody asks", **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, **options)


@contextlib.contextmanager
def served(service: Service) -> Iterator[Running]:
    """Serve until the end of the block."""
    with listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(create_app(service), log_level="error", timeout_graceful_shutdown=1, lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        try:
            yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", service)
        finally:
            server.should_exit = True
            thread.join(60)


@contextlib.contextmanager
def running(folder: Path, data: Path, keys: Path | None = None, **changes) -> Iterator[Running]:
    """A server over an engine folder; `changes` are of its settings."""
    settings = replace(Settings(folder, data, keys=keys, page=False), **changes)
    with served(Service(settings, Keys.read(keys), open_workers(settings))) as found:
        yield found


def wait_until(true, seconds: float = 60.0) -> None:
    """Until something holds; fails after so long."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"it did not become true within {seconds:g} seconds")
        time.sleep(0.01)


class StandIn:
    """A worker that computes nothing: tests say what becomes of each task.

    Attributes:
        tasks: by id, what was started, with who listens.
        started, cancelled: ids, in order.
    """

    def __init__(self, slots: int = 1):
        self.slots = slots
        self.tasks: dict[str, tuple[Task, Listener]] = {}
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.well = True

    def model(self) -> Model:
        return Model("toy", 96, 144, 17, 8, "cpu", ())

    def check(self, prompt, options, loras):
        return 96, 144, options.get("num_frames", 17)

    def start(self, task: Task, listen: Listener) -> None:
        self.tasks[task.id] = task, listen
        self.started.append(task.id)

    def cancel(self, id: str) -> None:
        self.cancelled.append(id)
        self.report(id, Cancelled())

    def report(self, id: str, *reports: Report) -> None:
        for report in reports:
            self.tasks[id][1](report)

    def finish(self, id: str, size: int = 1000) -> None:
        """The task is done, and its file has so many bytes."""
        Path(self.tasks[id][0].video).write_bytes(bytes(size))
        self.report(id, Begun(1), Stepped(1, 1), Made({"denoise": 1.0}, {"frames": 17}))

    def identify(self, photos, face):
        return b"an identity", b"a picture"

    def faces(self, photo):
        return []

    def healthy(self) -> bool:
        return self.well

    def close(self) -> None:
        pass


@contextlib.contextmanager
def scheduled(data: Path, worker: StandIn, people: int = 1, **changes) -> Iterator[Service]:
    """A service without HTTP over a stand-in."""
    settings = replace(Settings(Path("nowhere"), data, page=False), **changes)
    keys = Keys({digest(f"{KEY} {i}"): f"person {i}" for i in range(people)})
    service = Service(settings, keys, [worker])
    service.start()
    try:
        yield service
    finally:
        service.close()


def ask(service: Service, owner: str = "person 0", **fields) -> str:
    """The id of a video that was accepted."""
    person = Person(photo=b"a photo")
    return service.create(owner, VideoFields(prompt="A woman.", **fields), person).id


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Process:
    """consisid-serve in a process of its own. `address`: once it listens."""

    def __init__(self, folder: Path, data: Path, *arguments: str, port: int = 0):
        script = "import sys; from consisid.engine.serve.entry import serve; sys.exit(serve())"
        # Fewer arenas, so that what grows is what is held, and not what each thread's allocator keeps.
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder), "--data", str(data), "--port", str(port), "--no-page",
             "--checkpoint-every", "1", *arguments],
            stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        )  # fmt: skip
        self.lines: list[str] = []
        self.address: str | None = None
        threading.Thread(target=self._read, daemon=True).start()
        wait_until(lambda: self.address or self.process.poll() is not None, 120)
        assert self.address, self.lines

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("consisid-serve: http://"):
                self.address = line.split()[1].rstrip("/")

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="x", max_retries=0)

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)
