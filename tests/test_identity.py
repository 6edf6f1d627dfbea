"""identify on a whole photograph through the graphs of an engine, and the life of an Identity."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import random_identity, reference_pipeline, run_reference
from PIL import Image
from skimage.data import astronaut

from consisid.engine import ConsisID, Identity
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.errors import InputError
from consisid.engine.face_chain import analyse, features
from consisid.engine.face_eager import EagerFaceModels
from consisid.engine.photo import load_photo
from consisid.engine.variants import TINY
from consisid.export import build

FACE_GRAPHS = ("eva", "retinaface", "bisenet")


@pytest.fixture(scope="module")
def oracle(tiny_checkpoint):
    """The chain on plain modules, which the parity job compares with diffusers."""
    return EagerFaceModels(tiny_checkpoint / "face_encoder")


@pytest.mark.parametrize("engine", ["tiny", "compiled"])
@pytest.mark.parametrize("crop", [(0, 0, 512, 512), (90, 0, 431, 300)])
def test_the_engine_says_what_the_oracle_says(engine, crop, oracle, request):
    engine = request.getfixturevalue(engine)
    photo = np.asarray(Image.fromarray(astronaut()).crop(crop))
    person = engine.identify(photo)
    analysis = analyse(load_photo(photo), oracle)
    cond, hidden = features(analysis, oracle)
    assert (person.id_cond - cond).abs().max() < 1e-4
    for ours, theirs in zip(person.id_vit_hidden, hidden, strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert np.abs(np.asarray(person.image).astype(int) - analysis.crop).max() <= 1
    assert np.abs(person.key_points - analysis.points_crop).max() < 1e-2


def test_a_photo_seen_before_runs_no_network(tiny, tmp_path):
    path = tmp_path / "me.png"
    Image.fromarray(astronaut()).crop((80, 0, 400, 320)).save(path)
    networks = tiny.networks()
    counts = [sum(networks.calls[name] for name in FACE_GRAPHS)]
    people = []
    for photo in (path, path, str(path), np.asarray(Image.open(path)), np.asarray(Image.open(path))):
        people.append(tiny.identify(photo))
        counts.append(sum(networks.calls[name] for name in FACE_GRAPHS))
    # The file is one photo, its pixels as an array another.
    assert [b - a > 0 for a, b in pairwise(counts)] == [True, False, False, True, False]
    assert people[0] is people[1] is people[2]
    Image.fromarray(astronaut()).save(path)
    assert tiny.identify(path) is not people[0]  # the file changed


def test_saved_and_loaded(tiny, tmp_path):
    person = tiny.identify(astronaut())
    again = Identity.load(person.save(tmp_path / "me.safetensors"))
    options = {"seed": 1, "num_inference_steps": 1}
    assert (tiny.generate(person, "A man.", **options).frames == tiny.generate(again, "A man.", **options).frames).all()
    assert again.source == person.source
    assert {"photo", "face_models", "face", "mode"} <= set(person.source)
    assert np.array_equal(again.key_points, person.key_points)


def test_what_is_no_identity_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    for name, message in (("nowhere", "no identity at"), ("other", "is no identity"), ("text", "cannot be read")):
        with pytest.raises(InputError, match=message):
            Identity.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"\.safetensors"):
        random_identity(TINY).save(tmp_path / "me.pt")


def test_of_several_photos_the_most_typical_is_taken(tiny):
    whole = Image.fromarray(astronaut())
    photos = [np.asarray(whole.crop(box)) for box in ((0, 0, 512, 512), (60, 0, 420, 360))]
    darker = (photos[1] * 0.3).astype(np.uint8)
    people = [tiny.identify(photo) for photo in (*photos, darker)]
    chosen = tiny.identify([*photos, darker])
    assert chosen in people
    units = torch.cat([p.id_cond[:, :512] / p.id_cond[:, :512].norm() for p in people])
    assert people.index(chosen) == int((units @ units.mean(0)).argmax())


def test_whole_photo_mode(tiny):
    person = tiny.identify(astronaut(), mode="whole")
    assert np.array_equal(np.asarray(person.image), astronaut())
    assert not torch.equal(person.id_cond, tiny.identify(astronaut()).id_cond)
    assert tiny.generate(person, "A man.", seed=1, num_inference_steps=1).frames.shape == (17, 96, 144, 3)


def test_key_points_against_diffusers(tmp_path):
    """A model that is shown the key points: drawn, encoded and placed as the second latent frame."""
    variant = replace(TINY, name="custom", transformer=replace(TINY.transformer, is_kps=True))
    checkpoint = write_checkpoint(variant, tmp_path / "checkpoint")
    build(checkpoint, tmp_path / "engine", backend="eager")
    engine, pipeline = ConsisID.open(tmp_path / "engine"), reference_pipeline(checkpoint)
    person = random_identity(variant)
    person.key_points = np.array([[40, 50], [88, 50], [64, 75], [45, 95], [83, 95]], dtype=np.float64)
    reference, _ = run_reference(
        pipeline, person, "A man.", seed=7, decode=False, kps_cond=person.key_points, num_inference_steps=2
    )  # fmt: skip
    ours = engine.generate(person, "A man.", seed=7, output_type="latent", num_inference_steps=2).latents
    assert (ours - reference).abs().max() < 1e-4
    plain = random_identity(variant)
    without = engine.generate(plain, "A man.", seed=7, output_type="latent", num_inference_steps=2).latents
    assert (ours - without).abs().max() > 1e-3
