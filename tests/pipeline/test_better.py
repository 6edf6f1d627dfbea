"""What diffusers' pipeline gets wrong (its issue 13586): each of these fails with it, and is right here."""

import numpy as np
import pytest
import torch
from diffusers import ConsisIDPipeline as Theirs
from support.components import small_components, small_face
from support.people import random_face
from support.reference import LATENTS

from consisid.engine import ConsisIDPipeline


def generators(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def alone(pipeline, arguments, index, **others):
    """The latents of one video of a batch, made by itself with its generator."""
    return pipeline(**arguments(generator=generators(index + 1)[index], **others)).frames[0]


def test_videos_per_prompt(ours, theirs, arguments):
    assert len(theirs(**arguments(num_videos_per_prompt=2)).frames) == 1
    found = ours(**arguments(num_videos_per_prompt=2, generator=generators(2))).frames
    assert len(found) == 2
    for index in range(2):
        assert (found[index] - alone(ours, arguments, index)).abs().max() < LATENTS


def test_several_prompts_with_one_identity(ours, theirs, arguments):
    prompts = ["A man walks.", "A woman sings."]
    with pytest.raises(RuntimeError):
        theirs(**arguments(prompt=prompts))
    found = ours(**arguments(prompt=prompts, generator=generators(2))).frames
    for index, prompt in enumerate(prompts):
        assert (found[index] - alone(ours, arguments, index, prompt=prompt)).abs().max() < LATENTS


@pytest.mark.parametrize("guidance", [6.0, 1.0])
def test_one_prompt_with_several_identities(ours, theirs, arguments, guidance):
    faces = small_face(2)
    given = {"image": [random_face(0), random_face(1)], **faces, "guidance_scale": guidance}
    with pytest.raises(RuntimeError):
        theirs(**arguments(**given))
    found = ours(**arguments(**given, generator=generators(2))).frames
    for index in range(2):
        face = {"id_cond": faces["id_cond"][index : index + 1]}
        face["id_vit_hidden"] = [each[index : index + 1] for each in faces["id_vit_hidden"]]
        single = alone(ours, arguments, index, image=random_face(index), guidance_scale=guidance, **face)
        assert (found[index] - single).abs().max() < LATENTS
    assert (found[0] - found[1]).abs().max() > 0.1


def test_float32_latents_in_a_bfloat16_pipeline(tiny_checkpoint, arguments):
    components = small_components(tiny_checkpoint / "tokenizer", dtype=torch.bfloat16)
    face = small_face()
    face = {"id_cond": face["id_cond"].bfloat16(), "id_vit_hidden": [x.bfloat16() for x in face["id_vit_hidden"]]}
    given = arguments(latents=torch.randn(1, 3, 4, 4, 6), prompt="A man walks.", **face)
    with pytest.raises(RuntimeError):
        Theirs(**components)(**given)
    assert ConsisIDPipeline(**components)(**given).frames.dtype is torch.bfloat16


def test_sizes_are_checked_for_16(ours, theirs, arguments):
    """diffusers lets multiples of 8 through, and trips over them in the patch embedding."""
    with pytest.raises((RuntimeError, ValueError)) as raised:
        theirs(**arguments(height=40))
    assert "16" not in str(raised.value)
    with pytest.raises(ValueError, match="height=40 is not a positive multiple of 16"):
        ours(**arguments(height=40))


def test_the_cut_part_of_a_prompt_is_shown(ours, theirs, caplog, arguments):
    """diffusers names it for the transformers of some years ago; here it is a warning in any case."""
    prompt = "snow " * 40 + "falls at last"
    with pytest.warns(UserWarning, match="falls at last"):
        ours.encode_prompt(prompt, max_sequence_length=16)


def test_dynamic_guidance_by_the_formula_that_was_meant(ours, theirs, arguments):
    """diffusers puts the timestep where the step belongs: with 1000 of them its weight is no longer one of guidance."""
    seen = {}

    def note(name):
        def step(pipe, i, t, tensors):
            seen.setdefault(name, []).append(pipe.guidance_scale)
            return tensors

        return step

    options = {"num_inference_steps": 5, "guidance_scale": 6.0}
    theirs(**arguments(**options, use_dynamic_cfg=True, callback_on_step_end=note("theirs")))
    ours(**arguments(**options, use_dynamic_cfg=True, callback_on_step_end=note("same")))
    ours(**arguments(**options, use_dynamic_cfg="step", callback_on_step_end=note("meant")))
    assert np.allclose(seen["theirs"], seen["same"])
    assert sorted(seen["theirs"]) != seen["theirs"]
    assert sorted(seen["meant"]) == seen["meant"]
    assert seen["meant"][0] == 1.0


def test_a_callback_that_gives_back_nothing(ours, theirs, arguments):
    with pytest.raises(AttributeError):
        theirs(**arguments(callback_on_step_end=lambda *_: None))
    expected = ours(**arguments()).frames
    assert ours(**arguments(callback_on_step_end=lambda *_: None)).frames.equal(expected)


@pytest.mark.parametrize("image", ["path", "bytes", "array", "grey", "alpha"])
def test_images_that_diffusers_does_not_take(ours, theirs, arguments, image, tmp_path):
    import io

    picture = random_face(1)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    picture.save(tmp_path / "me.png")
    given = {
        "path": str(tmp_path / "me.png"), "bytes": stream.getvalue(), "array": np.asarray(picture),
        "grey": picture.convert("L"), "alpha": picture.convert("RGBA"),
    }[image]  # fmt: skip
    with pytest.raises((ValueError, RuntimeError)):
        theirs(**arguments(image=given))
    found = ours(**arguments(image=given)).frames
    if image != "grey":
        assert found.equal(ours(**arguments(image=picture)).frames)
