"""A server of a test: in a thread of this process, at a free port of this machine."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import openai
import uvicorn

from consisid.engine.serve.app import create_app
from consisid.engine.serve.keys import Keys
from consisid.engine.serve.local import LocalWorker
from consisid.engine.serve.process import listen
from consisid.engine.serve.service import Service
from consisid.engine.serve.settings import Settings

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
    with listen("127.0.0.1", 0) as socket:
        config = uvicorn.Config(create_app(service), log_level="error", timeout_graceful_shutdown=1, lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        try:
            yield Running(f"http://127.0.0.1:{socket.getsockname()[1]}", service)
        finally:
            server.should_exit = True
            thread.join(60)


@contextlib.contextmanager
def running(folder: Path, data: Path, keys: Path | None = None, **changes) -> Iterator[Running]:
    """A server over an engine folder; `changes` are of its settings."""
    settings = replace(Settings(folder, data, keys=keys, page=False), **changes)
    with served(Service(settings, Keys.read(keys), [LocalWorker(settings)])) as found:
        yield found


def wait_until(true, seconds: float = 60.0) -> None:
    """Until something holds; fails after so long."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"it did not become true within {seconds:g} seconds")
        time.sleep(0.01)
