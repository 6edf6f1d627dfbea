"""Several seeds of one prompt, and the best of them."""

import numpy as np
import pytest
import torch
from support.people import random_face, random_identity

from consisid.engine import ConsisID
from consisid.engine.errors import InputError
from consisid.engine.face.similarity import Similarity
from consisid.engine.variants import TINY

pytestmark = pytest.mark.slow

PERSON = random_identity(TINY)
SMALL = {"height": 96, "width": 144, "num_frames": 9, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def engine(shallow_folder):
    return ConsisID.open(shallow_folder)


@pytest.fixture
def scored(engine, monkeypatch):
    """Scores by the seed, None where no face is seen; gives the seeds that were looked at."""
    scores, looked = {1: 0.2, 2: None, 3: 0.7, 4: 0.4}, []
    known = {engine.generate(PERSON, "A man.", seed=seed, **SMALL).frames.tobytes(): seed for seed in scores}

    def of(faces, person, frames):
        seen = np.stack(list(frames))
        looked.append(known[np.ascontiguousarray(seen[..., ::-1]).tobytes()])
        return Similarity([], scores[looked[-1]], None, 0)

    monkeypatch.setattr("consisid.engine.many.several.similarity", of)
    return looked


def test_the_best_comes_first(engine, scored):
    videos = engine.generate(PERSON, "A man.", seeds=[1, 2, 3, 4], best_of="identity", **SMALL)
    assert [video.settings["seed"] for video in videos] == [3, 4, 1, 2]
    assert all(video.stats.scores == {3: 0.7, 4: 0.4, 1: 0.2, 2: None} for video in videos)
    assert sorted(scored) == [1, 2, 3, 4]


def test_it_ends_when_one_is_good_enough(engine, scored):
    videos = engine.generate(PERSON, "A man.", seeds=[1, 3, 4, 2], best_of="identity", good_enough=0.7, **SMALL)
    assert scored == [1, 3]
    assert [video.settings["seed"] for video in videos] == [3, 1]
    assert engine.active is None


def test_without_a_choice_they_stay_in_order(engine):
    videos = engine.generate(PERSON, "A man.", seeds=[9, 4], output_type="latent", **SMALL)
    for seed, video in zip((9, 4), videos, strict=True):
        alone = engine.generate(PERSON, "A man.", seed=seed, output_type="latent", **SMALL)
        assert torch.equal(video.latents, alone.latents)
        assert video.stats.scores == {}


def test_frames_without_a_face_have_no_score(engine):
    """By the engine's own networks: random weights show nobody."""
    videos = engine.generate(random_face(), "A man.", seeds=[1, 2], best_of="identity", aligned=True, **SMALL)
    assert [video.stats.scores for video in videos] == [{1: None, 2: None}] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": []}, "list of 1 to 64"), ({"seeds": 3}, "list of 1 to 64"), ({"seeds": [1, 1]}, "different"),
        ({"seeds": ["a"]}, "seeds='a'"), ({"seeds": [1], "seed": 2}, "seeds and seed"),
        ({"best_of": "identity"}, "seeds=None has to be"), ({"seeds": [1], "best_of": "beauty"}, '"identity"'),
        ({"seeds": [1], "best_of": "identity", "output_type": "latent"}, "looks at frames"),
        ({"seeds": [1], "good_enough": 0.5}, "beside best_of"), ({"good_enough": 0.5}, "seeds=None"),
        ({"seeds": [1], "best_of": "identity", "good_enough": float("nan")}, "good_enough=nan"),
        ({"seeds": [1], "num_videos_per_prompt": 2}, "a single one"), ({"seeds": [1, 2], "checkpoint": "x"}, "holds"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_from(engine, options, said):
    with pytest.raises(InputError, match=said):
        engine.generate(PERSON, "A man.", **{**SMALL, **options})
