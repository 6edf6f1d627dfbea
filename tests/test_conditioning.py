"""What does not change in the loop is not computed in the loop: counted calls of the graphs."""

import torch
from support.people import random_identity

from consisid.engine import ConsisID
from consisid.engine.variants import TINY

LAYERS, FACES = TINY.transformer.num_layers, TINY.transformer.num_cross_attn


def test_calls_of_a_video(tiny):
    person, steps = random_identity(TINY, 11), 4
    calls = tiny.generate(person, "A boy rides his bicycle.", seed=1, num_inference_steps=steps).stats.calls
    once = ("face_extract", "vae_encode", "text_project", "image_embed", "time_embed", "out_modulation")
    assert {name: calls[name] for name in once} == dict.fromkeys(once, 1)
    assert calls["face_fold"] == FACES
    assert calls["modulation"] == LAYERS
    # The prompt once; the empty negative prompt once per engine, perhaps in a test before this one.
    assert calls["text_layer"] in (TINY.text.num_layers, 2 * TINY.text.num_layers)
    assert (calls["embed"], calls["last_block"], calls["head"]) == (steps, steps, steps)
    assert calls["block"] == steps * (LAYERS - 1)
    assert calls["face"] == steps * FACES


def test_a_second_video_of_a_person_computes_nothing_about_the_face(tiny):
    person = random_identity(TINY, 12)
    for expected in (1, 0):
        calls = tiny.generate(person, "The boy rides.", seed=1, num_inference_steps=1).stats.calls
        assert calls.get("face_extract", 0) == expected
        assert calls.get("face_fold", 0) == expected * FACES
        assert calls.get("vae_encode", 0) == expected


def test_a_face_is_the_same_at_every_size(tiny_folder):
    """Its features are made once, its image is encoded once for each size of frames."""
    engine, person = ConsisID.open(tiny_folder), random_identity(TINY, 13)
    networks, counted = engine.networks(), []
    for height, width in ((96, 144), (96, 96), (96, 144)):
        networks.calls.clear()
        engine.conditioner.face(networks, person)
        engine.conditioner.images(networks, person, height, width)
        counted.append(tuple(networks.calls[name] for name in ("face_extract", "face_fold", "vae_encode")))
    assert counted == [(1, FACES, 1), (0, 0, 1), (0, 0, 0)]


def test_replaced_prompt_embeds_are_projected_again(tiny):
    def callback(engine, step, timestep, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"] + 1} if step == 1 else {}

    calls = tiny.generate(
        random_identity(TINY), "A man.", seed=1, num_inference_steps=3,
        callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["prompt_embeds"],
    ).stats.calls  # fmt: skip
    assert calls["text_project"] == 2


def test_a_callback_may_change_the_timesteps(tiny):
    """The modulation follows the timesteps of the scheduler, also when a callback replaces them during the run."""
    person, options = random_identity(TINY), {"seed": 1, "num_inference_steps": 3, "output_type": "latent"}

    def callback(engine, step, timestep, tensors):
        if step == 0:
            engine.scheduler.timesteps[1] = 500
        return {}

    changed = tiny.generate(person, "A man.", callback_on_step_end=callback, **options)
    plain = tiny.generate(person, "A man.", **options)
    assert changed.stats.calls["modulation"] == 2 * LAYERS
    assert not torch.equal(changed.latents, plain.latents)
