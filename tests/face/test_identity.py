"""identify on a whole photograph through the graphs of an engine, and the life of an Identity."""

import gc
import os
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from support.eager_face_models import EagerFaceModels
from support.people import random_identity
from support.reference import reference_pipeline, run_reference

from consisid.engine import ConsisID, Identity
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.errors import CheckpointError, InputError
from consisid.engine.face.analysis import analyse, features
from consisid.engine.face.extractor import FOLDER, Faces
from consisid.engine.face.identity import KIND
from consisid.engine.face.photo import load_photo
from consisid.engine.util.sealed import save_sealed
from consisid.engine.variants import TINY
from consisid.export import build

pytestmark = pytest.mark.slow

FACE_NETWORKS = ("eva", "retinaface", "bisenet", "scrfd", "arcface")
SHORT = {"seed": 1, "num_inference_steps": 1, "output_type": "latent"}


@pytest.fixture(scope="module")
def oracle(tiny_checkpoint):
    """The chain on plain modules, which the parity job compares with diffusers."""
    return EagerFaceModels(tiny_checkpoint / "face_encoder")


@pytest.mark.parametrize("crop", [(0, 0, 512, 512), (90, 0, 431, 300)])
def test_the_engine_says_what_the_oracle_says(tiny, crop, oracle):
    photo = np.asarray(Image.fromarray(astronaut()).crop(crop))
    person = tiny.identify(photo)
    analysis = analyse(load_photo(photo), oracle)
    cond, hidden = features(analysis, oracle)
    assert (person.id_cond - cond).abs().max() < 1e-4
    for ours, theirs in zip(person.id_vit_hidden, hidden, strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert np.abs(np.asarray(person.image).astype(int) - analysis.crop).max() <= 1
    # Nothing separated them when this was written; float32 points of up to 512 pixels carry 3e-5 each.
    assert np.abs(person.key_points - analysis.points_crop).max() < 1e-4


def counted(engine, photo, **options):
    """The identity, and how many of the five networks ran for it."""
    calls = engine.networks().calls
    before = sum(calls[name] for name in FACE_NETWORKS)
    person = engine.identify(photo, **options)
    return person, sum(calls[name] for name in FACE_NETWORKS) - before


def test_a_photo_seen_before_runs_no_network(tiny, tmp_path):
    path, copy = tmp_path / "me.png", tmp_path / "copy.png"
    Image.fromarray(astronaut()).crop((80, 0, 400, 320)).save(path)
    copy.write_bytes(path.read_bytes())
    pixels = np.asarray(Image.open(path))
    runs = [counted(tiny, photo) for photo in (path, path, str(path), copy, pixels, pixels.copy(), Image.open(path))]
    # A file's bytes are one photo, its pixels another, whoever holds them.
    assert [count for _, count in runs] == [5, 0, 0, 0, 5, 0, 0]
    assert len({id(person) for person, _ in runs}) == 2


def test_what_changes_the_pixels_is_another_photo(tiny, tmp_path):
    """Of the same size and time; the same array with another rotation in its EXIF."""
    path, image = tmp_path / "me.bmp", Image.fromarray(astronaut()).crop((100, 0, 400, 300))
    image.save(path)
    before = path.stat()
    first, _ = counted(tiny, path, aligned=True)
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    other, count = counted(tiny, path, aligned=True)
    assert count == 3
    assert other.source["photo"] != first.source["photo"]
    upright, _ = counted(tiny, image, aligned=True)
    image.getexif()[0x0112] = 3
    turned, count = counted(tiny, image, aligned=True)
    assert count == 3
    assert turned is not upright


def test_an_address_is_known_by_what_is_there(tiny, tmp_path, monkeypatch):
    served = {}
    monkeypatch.setattr("consisid.engine.face.photo.download", served.__getitem__)
    people = []
    for side in (300, 320):
        Image.fromarray(astronaut()).crop((80, 0, 80 + side, side)).save(tmp_path / "me.png")
        served["https://example.org/me.png"] = (tmp_path / "me.png").read_bytes()
        people.append(counted(tiny, "https://example.org/me.png", aligned=True))
        assert counted(tiny, tmp_path / "me.png", aligned=True) == (people[-1][0], 0)
    assert [count for _, count in people] == [3, 3]
    assert people[0][0].source["photo"] != people[1][0].source["photo"]


class FakeSession:
    """What ArcFace asks of ONNX Runtime; remembers where it was made."""

    made: list[tuple[str, list]]

    def __init__(self, path, options, providers):
        self.made.append((path.rsplit("/")[-1], providers))

    def get_inputs(self):
        return [type("Input", (), {"name": "x", "shape": [1, 3, 112, 112]})]

    def get_outputs(self):
        return range(9)

    def run(self, names, inputs):
        return [np.ones((1, 512), np.float32)]


def test_sessions_are_on_the_gpu_of_the_engine_and_leave_it(tiny, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(FakeSession, "made", [], raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    networks = SimpleNamespace(device=torch.device("cuda:1"), calls=Counter(), count=lambda name: None)
    faces = Faces(networks, tiny.checkpoint, tiny.manifest)
    assert FakeSession.made == []  # opening an engine costs nothing
    face = np.zeros((112, 112, 3), np.uint8)
    faces.arcface(face)
    faces.arcface(face)
    here = [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
    assert FakeSession.made == [("glintr100.onnx", here)]
    session = weakref.ref(faces._session("arcface").session)
    faces.release()
    gc.collect()
    assert session() is None
    faces.arcface(face)
    assert len(FakeSession.made) == 2


def test_sessions_leave_before_the_loop(tiny_folder, monkeypatch):
    engine = ConsisID.open(tiny_folder)
    order = []
    monkeypatch.setattr(type(engine), "release_faces", lambda self: order.append("released"))
    latents = torch.zeros(1, 5, 16, 12, 18)

    def loop(*given, **options):
        order.append("loop")
        return latents
        yield

    monkeypatch.setattr("consisid.engine.api.denoise", loop)
    engine.generate(random_identity(TINY), "A man.", seed=1, output_type="latent")
    assert order == ["released", "loop"]
    monkeypatch.undo()
    released = []
    engine.faces.release = lambda: released.append(True)
    engine.release_faces()  # on a CPU there is nothing to leave
    engine.device = torch.device("cuda")
    engine.release_faces()
    assert released == [True]


def test_face_models_are_known_without_reading_them(tiny, monkeypatch):
    """The hash is of the five files and of what is executed; the manifest has them."""

    def only_sources(path, *args, **keywords):
        assert FOLDER not in path.parts
        return opened(path, *args, **keywords)

    opened = Path.open
    monkeypatch.setattr(Path, "open", only_sources)
    monkeypatch.setattr(torch, "load", None)
    first = Faces(tiny.networks(), tiny.checkpoint, tiny.manifest).hash
    file = "face_encoder/models/antelopev2/glintr100.onnx"
    other = replace(tiny.manifest, weights=tiny.manifest.weights | {file: {"sha256": "0"}})
    assert Faces(tiny.networks(), tiny.checkpoint, other).hash != first
    graphs = tiny.manifest.graphs | {"eva": replace(tiny.manifest.graphs["eva"], sha256="0")}
    assert Faces(tiny.networks(), tiny.checkpoint, replace(tiny.manifest, graphs=graphs)).hash != first
    without = replace(tiny.manifest, weights={k: v for k, v in tiny.manifest.weights.items() if k != file})
    with pytest.raises(CheckpointError, match=r"lacks .*glintr100.onnx.*from_embeddings"):
        Faces(tiny.networks(), tiny.checkpoint, without)


def test_saved_and_loaded(tiny, tmp_path):
    person = tiny.identify(astronaut())
    again = Identity.load(person.save(tmp_path / "me.safetensors"))
    one, other = (tiny.generate(who, "A man.", **SHORT) for who in (person, again))
    assert torch.equal(one.latents, other.latents)
    assert one.stats.modes["attention"].startswith("torch's scaled_dot_product_attention, because")
    assert again.source == person.source
    assert {"photo", "face_models", "face", "mode"} <= set(person.source)
    assert np.array_equal(again.key_points, person.key_points)


def test_what_is_no_identity_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_sealed(
        tmp_path / "half.safetensors", {"id_cond": torch.zeros(1, 4)}, {"kind": KIND, "hidden": 1, "source": {}}
    )
    (tmp_path / "text.safetensors").write_text("no")
    messages = {"nowhere": "no identity at", "other": "it is another file", "text": "cannot be read",
                "half": r"its tensors are \['id_cond'\]"}  # fmt: skip
    for name, message in messages.items():
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


def test_whole_photo_mode(tiny, tmp_path):
    person = tiny.identify(astronaut(), mode="whole")
    assert np.array_equal(np.asarray(person.image), astronaut())
    crop = np.asarray(tiny.identify(astronaut()).image)
    assert np.array_equal(np.asarray(person.preview()), crop)
    assert np.array_equal(np.asarray(Identity.load(person.save(tmp_path / "me.safetensors")).preview()), crop)
    assert not torch.equal(person.id_cond, tiny.identify(astronaut()).id_cond)
    assert tiny.generate(person, "A man.", **SHORT).latents.isfinite().all()


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
