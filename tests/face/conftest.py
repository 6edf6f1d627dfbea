import numpy as np
import pytest
from skimage import data
from support.eager_face_models import EagerFaceModels

from consisid.engine.checkpoint.tiny_faces.write import write_face_models


@pytest.fixture(scope="session")
def face_folder(tmp_path_factory):
    """TINY's face_encoder."""
    folder = tmp_path_factory.mktemp("tiny")
    write_face_models(folder, seed=0)
    return folder / "face_encoder"


@pytest.fixture(scope="session")
def models(face_folder):
    return EagerFaceModels(face_folder)


@pytest.fixture(scope="session")
def astronaut():
    return data.astronaut()


@pytest.fixture(scope="session")
def landscape():
    """Sky, hills and water, without a warm colour."""
    y, x = np.mgrid[0:360, 0:540].astype(np.float32)
    hills = y > 180 + 40 * np.sin(x / 60)
    sky = np.stack((120 - y / 4, 160 - y / 6, 235 - y / 8), -1)
    land = np.stack((30 + y / 12, 90 + 20 * np.sin(x / 11), 60 + y / 9), -1)
    return np.where(hills[..., None], land, sky).clip(0, 255).astype(np.uint8)
