"""Identities made of embeddings: what is taken, what is refused in one sentence, and that they copy and pickle."""

import copy
import io
import os
import pickle
import stat

import numpy as np
import pytest
import torch
from PIL import Image
from support.people import png, random_identity

from consisid.engine import Identity
from consisid.engine.errors import InputError, WriteError
from consisid.engine.variants import TINY

SHORT = {"seed": 1, "num_inference_steps": 1, "output_type": "latent", "num_frames": 9}
PIXELS = np.asarray(random_identity(TINY).image)


def embeddings(**changes):
    person = random_identity(TINY)
    given = {"id_cond": person.id_cond, "id_vit_hidden": list(person.id_vit_hidden), "image": person.image}
    return Identity.from_embeddings(**{**given, **changes})


def test_an_image_in_any_form(tmp_path):
    (tmp_path / "me.png").write_bytes(png(PIXELS))
    transparent = np.concatenate((PIXELS, np.full((*PIXELS.shape[:2], 1), 255, np.uint8)), 2)
    for image in (
        PIXELS, tmp_path / "me.png", str(tmp_path / "me.png"), png(PIXELS), io.BytesIO(png(PIXELS)),
        torch.from_numpy(PIXELS.copy()).permute(2, 0, 1), Image.fromarray(transparent),
    ):  # fmt: skip
        person = embeddings(image=image)
        assert person.image.mode == "RGB"
        assert np.array_equal(np.asarray(person.image), PIXELS)
    large = np.zeros((30, 2000, 3), np.uint8)
    assert embeddings(image=large).image.size == (2000, 30)  # nothing is detected in it, so it is not reduced


def test_embeddings_in_any_form(tiny):
    """Arrays, one stacked tensor, and what still has a gradient are the same person."""
    person = random_identity(TINY)
    expected = tiny.generate(person, "A man.", **SHORT).latents
    arrays = embeddings(id_cond=person.id_cond.numpy(), id_vit_hidden=[h.numpy() for h in person.id_vit_hidden])
    stacked = embeddings(
        id_vit_hidden=torch.stack(person.id_vit_hidden).requires_grad_(), id_cond=person.id_cond.double()
    )
    for same in (arrays, stacked):
        assert torch.equal(tiny.generate(same, "A man.", **SHORT).latents, expected)


COND, HIDDEN = random_identity(TINY).id_cond, list(random_identity(TINY).id_vit_hidden)
REFUSED = {
    "cond of none": ({"id_cond": None}, "id_cond has to be a tensor of floats, this is NoneType"),
    "cond of ints": ({"id_cond": COND.int()}, "id_cond has to be a tensor of floats, this is torch.int32"),
    "cond of a list": ({"id_cond": COND.tolist()}, "id_cond has to be a tensor of floats, this is list"),
    "cond of text": ({"id_cond": np.array("x")}, "id_cond has to be a tensor of floats"),
    "cond on meta": ({"id_cond": COND.to("meta")}, "id_cond has to be a tensor of floats"),
    "two people": ({"id_cond": COND.repeat(2, 1)}, r"id_cond has to be \[1, n\], this is \[2, 1280\]"),
    "flat cond": ({"id_cond": COND[0]}, r"id_cond has to be \[1, n\], this is \[1280\]"),
    "empty cond": ({"id_cond": COND[:, :0]}, r"id_cond has to be \[1, n\]"),
    "NaN": ({"id_cond": COND * float("nan")}, "id_cond has numbers that are not finite"),
    "inf": ({"id_vit_hidden": [*HIDDEN[:4], HIDDEN[4] / 0]}, r"id_vit_hidden\[4\] has numbers that are not finite"),
    "no hidden": ({"id_vit_hidden": None}, "id_vit_hidden has to be a list of tensors, not NoneType"),
    "a number": ({"id_vit_hidden": 5}, "id_vit_hidden has to be a list of tensors, not int"),
    "text": ({"id_vit_hidden": "five"}, "id_vit_hidden has to be a list of tensors, not str"),
    "empty list": ({"id_vit_hidden": []}, "id_vit_hidden has to be a list of"),
    "one tensor": ({"id_vit_hidden": HIDDEN[0]}, r"id_vit_hidden has to be a list of \[1, tokens, width\]"),
    "a list of none": ({"id_vit_hidden": [None] * 5}, r"id_vit_hidden\[0\] has to be a tensor of floats"),
    "no image": ({"image": None}, "A photo is a path, .* not NoneType"),
    "a missing file": ({"image": "nowhere.png"}, "nowhere.png: no such file"),
    "an empty image": ({"image": Image.new("RGB", (0, 0))}, "the image: is empty"),
    "an image of one row": ({"image": np.zeros(5)}, "the array: has the shape"),
    "points": ({"key_points": [[1, 2]]}, r"key_points have to be \[5, 2\], these are \[1, 2\]"),
    "points of text": ({"key_points": "left"}, "key_points='left' are no numbers"),
    "ragged points": ({"key_points": [[1], [1, 2]]}, "are no numbers"),
    "points of NaN": ({"key_points": np.full((5, 2), np.nan)}, "are no places in an image"),
    "far points": ({"key_points": np.full((5, 2), 1e30)}, "are no places in an image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_identity(case):
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        embeddings(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id_vit_hidden": HIDDEN[:3]}, r"3 hidden states of \[1, \d+, 64\]; this model takes \[1, 1280\] and 5 of"),
        ({"id_vit_hidden": [*HIDDEN, HIDDEN[0]]}, "6 hidden states"),
        ({"id_vit_hidden": [h.repeat(1, 1, 8) for h in HIDDEN]}, r"5 hidden states of \[1, \d+, 512\]; this model"),
        ({"id_vit_hidden": [h[:, :9] for h in HIDDEN]}, r"5 hidden states of \[1, 9, 64\]; this model takes"),
        ({"id_cond": COND[:, :512]}, r"has an id_cond of \[1, 512\] and 5 hidden"),
    ],
)
def test_embeddings_of_another_model(tiny, changes, message):
    """Nothing tells before a model is there; then nothing is computed."""
    before = dict(tiny.networks().calls)
    with pytest.raises(InputError, match=rf"{message}.*Identify the photo with an engine of this model"):
        tiny.generate(embeddings(**changes), "A man.", **SHORT)
    assert dict(tiny.networks().calls) == before


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda person: pickle.loads(pickle.dumps(person))])
def test_copies_and_pickles(tiny, again):
    """After a video as well, when an engine keeps something for it."""
    person = random_identity(TINY)
    person.key_points, person.source = np.arange(10.0).reshape(5, 2), {"photo": "abc"}
    expected = tiny.generate(person, "A man.", **SHORT).latents
    other = again(person)
    assert torch.equal(tiny.generate(other, "A man.", **SHORT).latents, expected)
    assert (other.source, other.key_points.tolist()) == (person.source, person.key_points.tolist())
    assert np.array_equal(np.asarray(other.image), PIXELS)


def test_a_saved_identity_is_for_everybody_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        path = embeddings(id_vit_hidden=HIDDEN[:1] * 5).save(tmp_path / "me.safetensors")  # which share their memory
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert torch.equal(Identity.load(path).id_vit_hidden[4], HIDDEN[0])


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("consisid.engine.util.sealed.save_file", full)
    with pytest.raises(
        WriteError, match=r"me.safetensors cannot be written \(No space left on device\); check the free"
    ):
        embeddings().save(tmp_path / "me.safetensors")
    with pytest.raises(InputError, match="A path is a text or a Path, not int"):
        embeddings().save(3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, 3, 0, b"me.safetensors", [], {}, object()])
def test_what_is_no_path(path):
    """A number would be an open file's."""
    for call in (Identity.load, embeddings().save):
        with pytest.raises(InputError, match="A path is a text or a Path, not"):
            call(path)
