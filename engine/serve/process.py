"""The service as one process."""

import socket
import sys

import uvicorn

from ..errors import InputError
from .app import create_app
from .keys import Keys
from .local import open_workers
from .service import Service
from .settings import Settings

BACKLOG = 2048  # connections
GRACE = 5  # seconds in which answers that are under way may end


def run(settings: Settings, host: str, port: int) -> None:
    """Serve until an interrupt.

    Raises:
        InputError: the place to listen at is taken, or is none.
    """
    keys = Keys.read(settings.keys)
    listening = listen(host, port)
    with listening:
        service = Service(settings, keys, open_workers(settings))
        listening.listen(BACKLOG)  # who comes from now on waits until the server is there
        address = listening.getsockname()
        name = f"[{address[0]}]" if ":" in address[0] else address[0]
        print(f"consisid-serve: http://{name}:{address[1]}/ serves {service.name}", file=sys.stderr, flush=True)
        config = uvicorn.Config(
            create_app(service), log_level="warning", timeout_graceful_shutdown=GRACE, server_header=False,
            proxy_headers=False,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket at a place, taken before the engine is opened, which takes long."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port} cannot be listened at ({reason}); choose another.") from None
    return found
