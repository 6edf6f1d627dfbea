"""Several processes make the video of one: latents within 1e-4, frames within 1/255, the same bytes twice."""

import numpy as np
import pytest
import torch
from support.devices import STEPS, made, near, on_devices
from support.loras import lora
from support.people import random_identity

pytestmark = pytest.mark.slow

# Devices and mesh: TINY has 3 heads, 32 text tokens and 270 video tokens.
MESHES = [
    pytest.param((2, None), id="guidance", marks=pytest.mark.full),
    pytest.param((2, "ring=2"), id="ring"),
    pytest.param((6, None), id="guidance and ulysses", marks=pytest.mark.full),
    pytest.param((3, None), id="ulysses", marks=pytest.mark.full),
    pytest.param((4, None), id="guidance and ring", marks=pytest.mark.full),
    pytest.param((4, "ring=4"), id="ring with padding", marks=pytest.mark.full),
    pytest.param((6, "ulysses=3,ring=2"), id="ulysses and ring", marks=pytest.mark.full),
]


several = pytest.fixture(scope="module", params=MESHES)(on_devices)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="guided"),
        pytest.param({"guidance_scale": 1.0}, id="unguided"),
        pytest.param({"cfg": "sequential"}, id="halves one after the other"),
        pytest.param({"num_videos_per_prompt": 2}, id="two videos"),
        pytest.param({"num_inference_steps": 6, "shortcuts": {"first_block": 0.3}}, id="first-block cache"),
        pytest.param({"num_inference_steps": 6, "shortcuts": {"cache": 0.3}}, id="step cache"),
        pytest.param({"num_frames": 9}, id="another size"),
    ],
)
def test_latents_are_those_of_one_device(several, shallow, options):
    assert near(made(several, **options), made(shallow, **options))


def test_the_same_bytes_twice(several):
    assert torch.equal(made(several), made(several))


def test_loras_are_on_every_device(several, shallow):
    plain = made(several)
    for engine in (several, shallow):
        engine.load_lora_weights(lora(shallow.checkpoint))
    try:
        found, expected = made(several), made(shallow)
        assert near(found, expected)
        assert not near(found, plain)
        assert torch.equal(made(several), found)  # they have it still, and for a video of another size
        assert near(made(several, num_frames=9), made(shallow, num_frames=9))
    finally:
        for engine in (several, shallow):
            engine.unload_lora_weights()
    assert torch.equal(made(several), plain)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="whole"),
        pytest.param({"decode": "exact", "tile": (5, 7)}, id="exact"),
        pytest.param({"decode": "tiled", "tile": (6, 7)}, id="tiled"),
    ],
)
def test_frames_are_those_of_one_device(several, shallow, options):
    person = random_identity(several.variant)
    found = [
        engine.generate(person, "A person walks through snow.", num_inference_steps=1, seed=3, **options).frames
        for engine in (several, shallow)
    ]
    assert np.abs(found[0].astype(int) - found[1].astype(int)).max() <= 1
    assert found[0].std() > 5  # a picture, not one colour


def test_videos_take_turns(several, shallow):
    """Frames that are read in the midst of another video, of another size."""
    person = random_identity(several.variant)
    stream = several.generate(person, "One.", num_inference_steps=1, seed=1, output_type="stream").frames
    first = [next(stream)]
    other = made(several, num_frames=9)
    frames = np.stack(first + list(stream))
    expected = shallow.generate(person, "One.", num_inference_steps=1, seed=1).frames
    assert np.abs(frames.astype(int) - expected.astype(int)).max() <= 1
    assert near(other, made(shallow, num_frames=9))


def test_what_is_sent_is_what_is_stated(several):
    """Bytes of the first device in every block: the formula of Mesh.block_bytes; and what it hands out, of
    Mesh.given_bytes."""
    team, t = several.team, several.variant.transformer
    shares = team.mesh.shares(several.variant, several.shape)
    team.exchange.sent.clear()
    made(several)
    samples = 2 // team.mesh.cfg
    block = team.mesh.block_bytes(0, shares, samples, t.num_attention_heads, t.attention_head_dim, 4)
    sent = team.exchange.sent
    assert sent["tokens"] + sent["heads"] + sent["ring"] == STEPS * t.num_layers * block
    assert sent["scatter"] == STEPS * team.mesh.given_bytes(shares, samples, t.num_layers, t.inner_dim, 4)


def test_many_videos(several, shallow):
    """Each is the one that generate makes; videos that go on beside each other are told apart."""
    person = random_identity(several.variant)
    given = {"identity": person, "num_frames": 9, "output_type": "latent", "num_inference_steps": STEPS}
    requests = [{**given, "prompt": f"Person {i}.", "seed": i} for i in range(3)]
    found = {job.request.options.seed: job.result() for job in several.generate_many(requests, together=2)}
    for request in requests:
        expected = shallow.generate(request["identity"], **{k: v for k, v in request.items() if k != "identity"})
        assert near(found[request["seed"]].latents, expected.latents)


def test_a_person_again_at_another_size(several, shallow):
    """Whose keys and values are the same, while the positions are others."""
    person = random_identity(several.variant)
    for frames in (9, 17, 9):
        options = {"num_frames": frames, "num_inference_steps": 1, "seed": 3, "output_type": "latent"}
        found, expected = (engine.generate(person, "A.", **options).latents for engine in (several, shallow))
        assert near(found, expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_ends_a_video_between_two_tiles(several, shallow, monkeypatch, error):
    """Nothing is owed then: the next video is right."""
    from consisid.engine.decode import blended

    def fade(*given):
        raise error

    person, options = random_identity(several.variant), {"num_inference_steps": 1, "seed": 3, "num_frames": 9}
    with monkeypatch.context() as patch:
        patch.setattr(blended, "_fade", fade)
        with pytest.raises(error):
            several.generate(person, "A.", decode="tiled", tile=(6, 7), **options)
    found, expected = (
        engine.generate(person, "A.", decode="tiled", tile=(6, 7), **options).frames for engine in (several, shallow)
    )
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
