"""The whole chain against diffusers' process_face_embeddings_infer on the same files."""

import images
import numpy as np
import pytest
import torch
from reference import Reference
from support.eager_face_models import EagerFaceModels

from consisid.engine.face.analysis import analyse, features
from consisid.engine.face.photo import load_photo

PHOTOGRAPHS = images.photographs()


@pytest.fixture(scope="module")
def reference(tiny):
    return Reference(tiny)


class Recording(EagerFaceModels):
    """Keeps the labels of the last parsing."""

    def bisenet(self, image):
        logits = super().bisenet(image)
        self.labels = logits.argmax(dim=1)[0]
        return logits


@pytest.fixture(scope="module")
def models(tiny):
    return Recording(tiny / "face_encoder")


@pytest.mark.filterwarnings("ignore:.*faces in the photo", "ignore:the embedding is of the aligned crop")
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_same_numbers(name, reference, models, record_property):
    expected = reference(PHOTOGRAPHS[name])
    analysis = analyse(load_photo(PHOTOGRAPHS[name]), models)
    id_cond, hidden = features(analysis, models)

    flips = (models.labels != expected.labels).float().mean().item()
    image = np.abs(analysis.crop.astype(int) - np.asarray(expected.image).astype(int)).max()
    points = np.abs(analysis.points_photo - expected.points).max()
    cond = (id_cond - expected.id_cond).abs().max().item()
    # Relative to the largest: the hidden states of this random tower reach 25.
    states = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(hidden, expected.hidden, strict=True)]
    for key, value in (("flips", flips), ("image", image), ("points", points), ("cond", cond), ("hidden", max(states))):
        record_property(key, f"{value:.2e}")
    print(
        f"{name}: flips {flips:.1e}, image {image}, points {points:.1e}, id_cond {cond:.1e}, hidden {max(states):.1e}"
    )
    # The bounds of the contract.
    assert flips <= 1e-4
    assert image <= 1
    assert points <= 1e-4
    assert cond <= 1e-4
    assert max(states) <= 1e-4


def test_whole_image_mode(reference, models):
    """is_align_face=False shows the tower the photo itself; diffusers can do so with square photos only."""
    photo = PHOTOGRAPHS["whole"]
    expected = reference(photo, aligned=False)
    id_cond, hidden = features(analyse(load_photo(photo), models), models, whole=True)
    torch.testing.assert_close(id_cond, expected.id_cond, atol=1e-4, rtol=0)
    for ours, theirs in zip(hidden, expected.hidden, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=0)


@pytest.mark.filterwarnings("ignore:the embedding is of the aligned crop")
def test_fallback_to_the_aligned_crop(reference, models):
    """RetinaFace sees a face here, SCRFD none."""
    photo = np.ascontiguousarray(images.photographs()["whole"][:200, 140:320])
    assert len(models.scrfd(np.ascontiguousarray(photo[..., ::-1]))) == 0
    expected = reference(photo)
    analysis = analyse(load_photo(photo), models)
    id_cond, _ = features(analysis, models)
    torch.testing.assert_close(id_cond, expected.id_cond, atol=1e-4, rtol=0)
    np.testing.assert_allclose(analysis.points_photo, expected.points, atol=1e-4)


def test_two_people_are_mixed_by_name_only(reference, models):
    """diffusers embeds the largest face and crops the most central one."""
    whole = PHOTOGRAPHS["whole"]
    large, small = whole[0:300, 60:400], images.cv2.resize(whole, (340, 340))[:300]
    photo = np.concatenate((large, small, small[:, :120]), axis=1)
    expected = reference(photo)
    mixed = analyse(load_photo(photo), models, face="reference")
    id_cond, _ = features(mixed, models)
    torch.testing.assert_close(id_cond, expected.id_cond, atol=1e-4, rtol=0)
    assert np.abs(mixed.crop.astype(int) - np.asarray(expected.image).astype(int)).max() <= 1
    left, right = (analyse(load_photo(photo), models, face=i) for i in (0, 1))
    torch.testing.assert_close(mixed.arcface, left.arcface)
    assert not np.array_equal(mixed.crop, left.crop)
    np.testing.assert_array_equal(mixed.crop, right.crop)
