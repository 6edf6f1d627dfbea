"""One server for the tests that leave nothing behind, over an engine whose decoder is shallow."""

import io
from pathlib import Path

import pytest
from PIL import Image
from skimage.data import astronaut
from support.serving import Running, running


@pytest.fixture(scope="session")
def photo() -> bytes:
    """Eileen Collins, 512 x 512 (NASA, public domain)."""
    file = io.BytesIO()
    Image.fromarray(astronaut()).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def server(shallow_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Running:
    with running(shallow_folder, tmp_path_factory.mktemp("serve") / "data", checkpoint_every=1) as found:
        yield found


@pytest.fixture(scope="session")
def client(server: Running):
    return server.client()


@pytest.fixture(scope="session")
def character(client, photo) -> str:
    """The id of a stored person."""
    return client.videos.create_character(name="Eileen", video=("photo.png", photo, "image/png")).id
