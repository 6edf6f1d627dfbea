"""Every form of a call, against diffusers' class with the same modules: latents within 1e-4, frames within 1/255."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from support.components import small_components
from support.people import random_face, random_identity
from support.reference import FRAMES, LATENTS

from consisid.engine import ConsisID, ConsisIDPipeline, errors
from consisid.engine.variants import TINY

from .conftest import quiet

TWO = {"prompt": ["A man walks.", "A woman sings."]}
FORMS = {
    "a text": {"prompt": "A man walks."},
    "a text and a negative one": {"prompt": "A man walks.", "negative_prompt": "blurred"},
    "an empty text": {"prompt": ""},
    "embeddings": {},
    "a list of one image": {"image": [random_face(1)]},
    "a tensor": {"image": torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(1))},
    "a tensor below 0": {"image": torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1},
    "a list of tensors": {"image": [torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(1))]},
    "a list of arrays": {"image": [np.random.default_rng(1).random((40, 50, 3)).astype(np.float32)]},
    "two prompts with two images": {**TWO, "image": [random_face(1), random_face(2)]},
    "two with a generator each": {
        **TWO, "image": [random_face(1), random_face(2)], "negative_prompt": ["blurred", "dark"],
        "generator": [torch.Generator(), torch.Generator()],
    },
    "no guidance": {"guidance_scale": 1.0},
    "dynamic guidance": {"use_dynamic_cfg": True},
    "eta": {"eta": 0.5},
    "latents": {"latents": torch.randn(1, 3, 4, 4, 6, generator=torch.Generator().manual_seed(4))},
    "another size of frames": {"num_frames": 17},
    "8 frames": {"num_frames": 8},
    "13 frames": {"num_frames": 13},
    "one frame": {"num_frames": 1},
}  # fmt: skip


def fresh(form):
    """Generators at their beginning: a call uses them up."""
    given = form.get("generator")
    return (
        form if given is None else form | {"generator": [torch.Generator().manual_seed(i) for i in range(len(given))]}
    )


@pytest.mark.parametrize("form", FORMS)
def test_latents_are_those_of_diffusers(ours, theirs, arguments, form):
    expected = theirs(**arguments(**fresh(FORMS[form]))).frames
    found = ours(**arguments(**fresh(FORMS[form]))).frames
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < LATENTS


@pytest.mark.filterwarnings("ignore:num_frames")
@pytest.mark.parametrize("frames", [9, 5])
def test_frames_are_those_of_diffusers(ours, theirs, arguments, frames):
    """In each of the forms that it has for them; 5 frames become 8 in both."""
    latents = theirs(**arguments(num_frames=frames)).frames
    with torch.no_grad():
        video = theirs.decode_latents(latents)
    decoded = ours.decode_latents(latents)
    assert decoded.shape == video.shape
    assert (decoded - video).abs().max() < 2 * FRAMES
    for output_type in ("np", "pt", "pil"):
        found = ours(**arguments(output_type=output_type, num_frames=frames)).frames
        expected = theirs.video_processor.postprocess_video(video, output_type=output_type)
        assert type(found) is type(expected)
        if output_type == "pil":
            assert [image.size for image in found[0]] == [image.size for image in expected[0]]
            found, expected = (np.stack([np.asarray(x) for x in each[0]]) / 255 for each in (found, expected))
        assert found.shape == expected.shape
        assert np.abs(np.asarray(found) - np.asarray(expected)).max() <= FRAMES + 1e-6


def test_a_tuple_or_diffusers_own_output(ours, arguments):
    from diffusers.pipelines.consisid.pipeline_output import ConsisIDPipelineOutput

    found = ours(**arguments())
    (frames,) = ours(**arguments(), return_dict=False)
    assert type(found) is ConsisIDPipelineOutput
    assert found.frames.equal(frames)


def test_signature_is_that_of_diffusers():
    def of(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    for name in ("__call__", "__init__", "encode_prompt", "prepare_latents", "check_inputs", "decode_latents"):
        assert of(getattr(ConsisIDPipeline, name)) == of(getattr(diffusers.ConsisIDPipeline, name)), name


def test_parts_of_a_call_are_those_of_diffusers(ours, theirs):
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for given in (
        {"prompt": ["A man walks.", "b"], "num_videos_per_prompt": 2},
        {"prompt": "c", "negative_prompt": "d"},
    ):
        with torch.no_grad():
            expected = theirs.encode_prompt(**given, max_sequence_length=16)
        for one, other in zip(ours.encode_prompt(**given, max_sequence_length=16), expected, strict=True):
            assert (one - other).abs().max() < 1e-5
    size = {
        "batch_size": 2,
        "num_channels_latents": 4,
        "num_frames": 9,
        "height": 32,
        "width": 48,
        "dtype": torch.float32,
    }
    with torch.no_grad():
        expected = theirs.prepare_latents(
            image, **size, generator=torch.Generator().manual_seed(2), kps_cond=image.flip(0)
        )
    found = ours.prepare_latents(image, **size, generator=torch.Generator().manual_seed(2), kps_cond=image.flip(0))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 1e-5
    theirs.scheduler.set_timesteps(10)
    for strength in (0.3, 1.0):
        one, other = (p.get_timesteps(10, theirs.scheduler.timesteps, strength, None) for p in (ours, theirs))
        assert one[0].equal(other[0])
        assert one[1] == other[1]
    assert ours.prepare_extra_step_kwargs(None, 0.5) == theirs.prepare_extra_step_kwargs(None, 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": None}, "There is no image"),
        ({"image": []}, "list of images is empty"),
        ({"height": 100}, "not a positive multiple of 16"),
        ({"prompt": 3}, "neither a text"),
        ({"prompt_embeds": None, "negative_prompt_embeds": None}, "either a prompt or prompt_embeds"),
        ({"negative_prompt_embeds": torch.zeros(1, 3, 32)}, r"\[1, 16, 32\] and negative_prompt_embeds \[1, 3, 32\]"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "Callbacks cannot have noise"),
        ({"output_type": "mp4"}, "is none of pil, np, pt, latent"),
        ({"id_vit_hidden": None}, "id_vit_hidden is missing"),
        ({"id_cond": torch.zeros(1, 7)}, "this model takes"),
        ({"id_cond": torch.zeros(3, 12), "image": [random_face(1), random_face(2)]}, "do not go together"),
        ({"max_sequence_length": 15}, "this model takes 16 tokens"),
        ({"latents": torch.zeros(1, 3, 4, 4, 4)}, "has the shape"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "2 generators were given for 1 videos"),
    ],
)
def test_what_cannot_be_used_is_a_value_error_of_one_sentence(ours, arguments, change, said):
    with pytest.raises(ValueError, match=said) as error:
        ours(**arguments(**change))
    assert "\n" not in str(error.value)


def test_bfloat16_is_as_near_to_float32_as_diffusers(tiny_checkpoint, arguments):
    """The contract's rule, over several models: the error against diffusers in float32, beside diffusers' own."""
    errors = {"ours": 0.0, "theirs": 0.0}
    face = {name: value for name, value in arguments().items() if name.startswith("id_")}
    halved = {"id_cond": face["id_cond"].bfloat16(), "id_vit_hidden": [x.bfloat16() for x in face["id_vit_hidden"]]}
    for seed in range(4):
        whole, half = (
            small_components(tiny_checkpoint / "tokenizer", seed, dtype) for dtype in (torch.float32, torch.bfloat16)
        )
        exact = quiet(diffusers.ConsisIDPipeline(**whole))(**arguments(prompt="A man walks.")).frames
        for name, kind in (("theirs", diffusers.ConsisIDPipeline), ("ours", ConsisIDPipeline)):
            found = quiet(kind(**half))(**arguments(prompt="A man walks.", **halved)).frames
            errors[name] += float((found.float() - exact).square().mean())
    assert errors["ours"] ** 0.5 <= 1.1 * errors["theirs"] ** 0.5


def test_key_points_are_those_of_diffusers(tiny_checkpoint, arguments):
    components = small_components(tiny_checkpoint / "tokenizer", is_kps=True)
    given = {"kps_cond": [[10, 12], [20, 12], [15, 16], [11, 20], [19, 20]], "num_frames": 17}
    expected = quiet(diffusers.ConsisIDPipeline(**components))(**arguments(**given)).frames
    ours = quiet(ConsisIDPipeline(**components))
    found = ours(**arguments(**given)).frames
    assert (found - expected).abs().max() < LATENTS
    assert (found - ours(**arguments(num_frames=17)).frames).abs().max() > LATENTS


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InputError, ValueError), (errors.CheckpointError, ValueError), (errors.EngineError, ValueError),
        (errors.MemoryBudgetError, ValueError), (errors.BackendError, RuntimeError),
        (errors.NumericalError, ArithmeticError), (errors.DeviceMemoryError, MemoryError),
    ],
)  # fmt: skip
def test_errors_are_built_in_ones_too(error, kind):
    assert issubclass(error, kind)


def test_a_text_encoder_of_the_first_t5(components, arguments):
    """With ReLU, as the one that diffusers' own tests are made with."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="relu")
    given = components | {"text_encoder": T5EncoderModel(config).eval()}
    expected = diffusers.ConsisIDPipeline(**given)(**arguments(prompt="A man walks.")).frames
    found = ConsisIDPipeline(**given)(**arguments(prompt="A man walks.")).frames
    assert (found - expected).abs().max() < LATENTS
    assert (found - ConsisIDPipeline(**components)(**arguments(prompt="A man walks.")).frames).abs().max() > LATENTS


IN_CI = ("a text and a negative one", "two prompts with two images", "dynamic guidance")
# Those of a call at another size.
ELSEWHERE = ("embeddings", "latents")
TINYS = [
    pytest.param(form, marks=[] if form in IN_CI else [pytest.mark.full]) for form in FORMS if form not in ELSEWHERE
]


@pytest.mark.filterwarnings("ignore:num_frames", "ignore:Passing `image`")
@pytest.mark.parametrize("form", TINYS)
def test_tiny_at_its_own_size(tiny_reference, arguments, form):
    """Latents, and the frames that each decodes of its own."""
    person, ours = random_identity(TINY), quiet(ConsisIDPipeline(**tiny_reference.components))
    given = {
        "prompt": "A man walks.", "image": person.image, "id_cond": person.id_cond, "height": 96, "width": 144,
        "id_vit_hidden": list(person.id_vit_hidden), "max_sequence_length": 32, "num_inference_steps": 2,
    }  # fmt: skip
    found, expected = (pipe(**arguments(**given | fresh(FORMS[form]))).frames for pipe in (ours, tiny_reference))
    assert (found - expected).abs().max() < LATENTS
    with torch.no_grad():
        video = tiny_reference.decode_latents(expected)
    right = tiny_reference.video_processor.postprocess_video(video, output_type="np")
    frames = ours(**arguments(**given | fresh(FORMS[form]) | {"output_type": "np"})).frames
    assert np.abs(frames - right).max() <= FRAMES


def test_generate_has_the_names_of_diffusers():
    ours, theirs = (
        set(inspect.signature(each).parameters) for each in (ConsisID.generate, diffusers.ConsisIDPipeline.__call__)
    )
    assert theirs <= ours
