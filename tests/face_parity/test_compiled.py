"""What looks at a photograph, compiled: an engine's five networks against the same as plain modules."""

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut
from support.eager_face_models import EagerFaceModels
from support.engines import PHOTO, build_in_part

from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.face.analysis import analyse, features
from consisid.engine.face.photo import load_photo


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    checkpoint = write_checkpoint("tiny", tmp_path_factory.mktemp("tiny") / "checkpoint")
    build_in_part(checkpoint, checkpoint.parent / "engine", PHOTO.__contains__)
    return ConsisID.open(checkpoint.parent / "engine")


@pytest.mark.parametrize("crop", [(0, 0, 512, 512), (90, 0, 431, 300)])
def test_a_compiled_engine_says_what_plain_modules_say(engine, crop):
    assert {name for name, entry in engine.manifest.graphs.items() if entry.backend == "inductor"} == PHOTO
    photo = np.asarray(Image.fromarray(astronaut()).crop(crop))
    oracle = EagerFaceModels(engine.checkpoint.path / "face_encoder")
    person, analysis = engine.identify(photo), analyse(load_photo(photo), oracle)
    cond, hidden = features(analysis, oracle)
    assert (person.id_cond - cond).abs().max() < 1e-4
    for ours, theirs in zip(person.id_vit_hidden, hidden, strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert np.abs(np.asarray(person.image).astype(int) - analysis.crop).max() <= 1
    assert np.abs(person.key_points - analysis.points_crop).max() < 1e-4
