"""What diffusers' callbacks and arguments do, against diffusers' own pipeline where it can do it."""

import numpy as np
import pytest
import torch
from diffusers.utils import export_to_video
from support.people import random_identity
from support.reference import run_reference

from consisid.engine import ConsisID
from consisid.engine.errors import InputError
from consisid.engine.variants import TINY

PROMPT, LATENTS = "A person walks.", 1e-4
SMALL = {"num_inference_steps": 4, "num_frames": 9, "seed": 7}
EVERY = ["latents", "prompt_embeds", "negative_prompt_embeds"]


@pytest.fixture(scope="module")
def person():
    return random_identity(TINY)


def ours(engine, person, **options):
    return engine.generate(person, PROMPT, output_type="latent", **{**SMALL, **options}).latents


def theirs(pipeline, person, **options):
    return run_reference(pipeline, person, PROMPT, decode=False, **{**SMALL, **options})[0]


def error(engine, pipeline, person, **options):
    return (ours(engine, person, **options) - theirs(pipeline, person, **options)).abs().max()


class Sets:
    """A callback that sets something of the pipeline's after a step, and notes what it reads."""

    def __init__(self, at, **values):
        self.at, self.values, self.read = at, values, []

    def __call__(self, pipeline, step, timestep, tensors):
        self.read.append((pipeline.guidance_scale, pipeline.interrupt, pipeline._num_timesteps, pipeline.num_timesteps))
        if step == self.at:
            for name, value in self.values.items():
                setattr(pipeline, name, value)
        return tensors


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, 9])
@pytest.mark.parametrize("at", [0, 2])
def test_the_weight_of_the_prompt(shallow, shallow_reference, person, at, scale):
    mine, reference = Sets(at, _guidance_scale=scale), Sets(at, _guidance_scale=scale)
    found = ours(shallow, person, callback_on_step_end=mine)
    assert (found - theirs(shallow_reference, person, callback_on_step_end=reference)).abs().max() < LATENTS
    assert (found - ours(shallow, person)).abs().max() > 100 * LATENTS
    assert mine.read == reference.read


@pytest.mark.parametrize("at", [0, 1, 3])
def test_interrupt(shallow, shallow_reference, person, at):
    mine, reference = Sets(at, _interrupt=True), Sets(at, _interrupt=True)
    found = ours(shallow, person, callback_on_step_end=mine)
    assert (found - theirs(shallow_reference, person, callback_on_step_end=reference)).abs().max() < LATENTS
    assert mine.read == reference.read
    assert len(mine.read) == at + 1


def test_dynamic_guidance_is_read_as_diffusers_says_it(shallow, shallow_reference, person):
    mine, reference = Sets(1, _guidance_scale=2.0), Sets(1, _guidance_scale=2.0)
    options = {"use_dynamic_cfg": True}
    found = ours(shallow, person, callback_on_step_end=mine, **options)
    assert (found - theirs(shallow_reference, person, callback_on_step_end=reference, **options)).abs().max() < LATENTS
    assert [row[0] for row in mine.read] == pytest.approx([row[0] for row in reference.read])


def test_a_weight_that_a_callback_set_is_a_part_of_the_checkpoint(shallow, person, tmp_path):
    path = tmp_path / "run.safetensors"

    def dies(pipeline, step, timestep, tensors):
        if step == 0:
            pipeline._guidance_scale = 1.5
        if step == 2:
            raise InterruptedError

    whole = ours(shallow, person, callback_on_step_end=Sets(0, _guidance_scale=1.5))
    with pytest.raises(InterruptedError):
        ours(shallow, person, callback_on_step_end=dies, checkpoint=path, checkpoint_every=1)
    assert torch.equal(ours(shallow, person, checkpoint=path), whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["latents", "prompt_embeds"])
def test_tensors_of_another_dtype_are_cast(shallow, person, name, dtype):
    def rounds(pipeline, step, timestep, tensors):
        return {name: tensors[name].to(dtype).float()}

    def casts(pipeline, step, timestep, tensors):
        return {name: tensors[name].to(dtype)}

    options = {"callback_on_step_end_tensor_inputs": EVERY}
    rounded = ours(shallow, person, callback_on_step_end=rounds, **options)
    assert torch.equal(ours(shallow, person, callback_on_step_end=casts, **options), rounded)


@pytest.mark.parametrize("name", ["latents", "prompt_embeds"])
def test_tensors_that_are_changed_in_place(shallow, shallow_reference, person, name):
    def changes(pipeline, step, timestep, tensors):
        if step == 1:
            tensors[name].mul_(0.5)
        return tensors

    options = {"callback_on_step_end": changes, "callback_on_step_end_tensor_inputs": EVERY}
    assert error(shallow, shallow_reference, person, **options) < LATENTS
    assert (ours(shallow, person, **options) - ours(shallow, person)).abs().max() > 10 * LATENTS
    assert torch.equal(ours(shallow, person), ours(shallow, person))  # nothing that is kept was changed


def test_what_else_a_callback_reads_and_sets(shallow, person):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        assert pipeline.do_classifier_free_guidance
        assert pipeline.attention_kwargs == {"scale": 0.5}
        assert pipeline.device == shallow.device
        assert not hasattr(pipeline, "no_such_thing")
        seen.append(getattr(pipeline, "mine", None))
        pipeline.mine = step
        with pytest.raises(AttributeError):
            pipeline.guidance_scale = 3.0

    ours(shallow, person, callback_on_step_end=callback, attention_kwargs={"scale": 0.5})
    assert seen == [None, 0, 1, 2]
    assert not hasattr(shallow, "mine")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3, "returned 3 after step 1; it has to be a dict"),
        ([], "has to be a dict"),
        ({"latents": None}, "latents of NoneType"),
        ({"latents": torch.zeros(1, 3, 16, 12, 18, dtype=torch.int64)}, "in torch.int64 after step 1"),
        ({"latents": torch.zeros(1, 3, 16, 12, 18).to_sparse()}, "torch.sparse_coo"),
        ({"latents": torch.zeros(1, 3, 16, 12, 18, device="meta")}, "on meta"),
        ({"latents": torch.zeros(1, 3, 16, 12, 18, dtype=torch.complex64)}, "in torch.complex64"),
        ({"prompt_embeds": torch.zeros(1, 32, 64)}, r"prompt_embeds of \[1, 32, 64\].*\[2, 32, 64\]"),
    ],
)
def test_what_a_callback_may_not_return(shallow, person, returned, message):
    with pytest.raises(InputError, match=message):
        ours(shallow, person, callback_on_step_end=lambda *_: returned)


def test_tensors_that_are_resized_in_place(shallow, person):
    def resizes(pipeline, step, timestep, tensors):
        tensors["latents"].resize_(2)
        return {}

    with pytest.raises(
        InputError, match=r"returned latents of \[2\] after step 1; it has to be a tensor of \[1, 3, 16,"
    ):
        ours(shallow, person, callback_on_step_end=resizes)


def test_what_a_run_keeps(shallow, person):
    """Another scheduler is refused; numbers that diffusers only tells may be set, and change nothing else."""
    told = []

    def tells(pipeline, step, timestep, tensors):
        told.append((pipeline.num_timesteps, pipeline.attention_kwargs))
        pipeline._num_timesteps, pipeline._attention_kwargs = 99, {"scale": 0.0}

    def replaces(pipeline, step, timestep, tensors):
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)

    assert torch.equal(ours(shallow, person, callback_on_step_end=tells), ours(shallow, person))
    assert told == [(4, None)] + [(99, {"scale": 0.0})] * 3
    with pytest.raises(InputError, match="The callback set a scheduler, and a run keeps the one that it began with"):
        ours(shallow, person, callback_on_step_end=replaces)


@pytest.mark.parametrize("value", [float("nan"), "much", None, True])
def test_what_is_no_weight(shallow, person, value):
    with pytest.raises(InputError, match=r"_guidance_scale to .*, which is not a finite number"):
        ours(shallow, person, callback_on_step_end=Sets(0, _guidance_scale=value))


def test_the_person_as_diffusers_takes_one(shallow, person):
    expected = ours(shallow, person)
    parts = {"image": person.image, "id_cond": person.id_cond, "id_vit_hidden": list(person.id_vit_hidden)}
    options = {**SMALL, "prompt": PROMPT, "output_type": "latent"}
    assert torch.equal(shallow.generate(**parts, **options).latents, expected)
    points = np.zeros((5, 2))
    assert torch.equal(shallow.generate(**parts, kps_cond=points, **options).latents, expected)  # not of this model
    photo = shallow.generate(image=person.image, aligned=True, **options).latents
    assert torch.equal(photo, shallow.generate(person.image, aligned=True, **options).latents)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "Nobody was given"),
        (("identity", "id_cond"), "Both a person and id_cond"),
        (("identity", "image"), "Both a person and image"),
        (("image", "id_cond"), "id_cond alone is no person"),
        (("image", "kps_cond"), "kps_cond alone is no person"),
        (("id_cond", "id_vit_hidden"), "Nobody was given"),
    ],
)
def test_half_a_person_or_two(shallow, person, names, message):
    parts = {
        "identity": person, "image": person.image, "id_cond": person.id_cond, "id_vit_hidden": person.id_vit_hidden,
        "kps_cond": np.zeros((5, 2)),
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        shallow.generate(prompt=PROMPT, **{name: parts[name] for name in names})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_videos_per_prompt": 0}, "has to be at least 1"),
        ({"num_videos_per_prompt": 2.0}, "not a whole number"),
        ({"num_videos_per_prompt": 10**9}, "is more than 64"),
        ({"attention_kwargs": {"gligen": {}}}, r'it may be \{"scale": number\}'),
        ({"attention_kwargs": {"scale": "1"}}, r'it may be \{"scale": number\}'),
        ({"attention_kwargs": 3}, r'it may be \{"scale": number\}'),
        ({"max_sequence_length": 226}, "take 32 tokens"),
        ({"max_sequence_length": "all"}, "is not a whole number"),
        ({"width": 160, "height": 96}, "learned positions for 96x144"),
    ],
)
def test_arguments_that_are_refused(shallow, person, options, message):
    with pytest.raises(InputError, match=message):
        shallow.generate(person, PROMPT, **options)


def test_several_videos_of_each_prompt(shallow, person):
    """Each from the noise that its own generator draws; embeddings are repeated as in diffusers."""
    prompts = ["A person walks.", "A person sings."]
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    options = {"num_inference_steps": 2, "num_frames": 9, "output_type": "latent"}
    videos = shallow.generate(person, prompts, num_videos_per_prompt=2, generator=generators, **options)
    for i, video in enumerate(videos):
        alone = shallow.generate(person, prompts[i // 2], seed=i, **options).latents
        assert (video.latents - alone).abs().max() < LATENTS
    assert len(shallow.generate(person, prompts[0], num_videos_per_prompt=3, seed=1, **options)) == 3


def test_the_scale_of_loras(shallow_folder, person):
    """attention_kwargs={"scale": s}: as if each adapter had s times its weight, in this run alone."""
    engine, generator, dim = ConsisID.open(shallow_folder), torch.Generator().manual_seed(1), TINY.transformer.inner_dim
    lora = {
        f"transformer.transformer_blocks.2.attn1.to_v.lora_{part}.weight": torch.randn(size, generator=generator)
        for part, size in (("A", (2, dim)), ("B", (dim, 2)))
    }
    plain = ours(engine, person)
    engine.load_lora_weights(lora, "it")
    engine.set_adapters("it", 0.25)
    quarter = ours(engine, person)
    engine.set_adapters("it", 0.5)
    assert torch.equal(ours(engine, person, attention_kwargs={"scale": 0.5}), quarter)
    assert torch.equal(ours(engine, person, attention_kwargs={"scale": 0.0}), plain)
    half = ours(engine, person, attention_kwargs={})
    assert torch.equal(half, ours(engine, person))
    engine.fuse_lora()
    assert torch.equal(ours(engine, person, attention_kwargs={"scale": 0.5}), half)


def test_return_dict(shallow, person):
    options = {**SMALL, "output_type": "latent"}
    video, several = (shallow.generate(person, prompt, **options) for prompt in (PROMPT, [PROMPT]))
    (same,), (also,) = (shallow.generate(person, p, return_dict=False, **options) for p in (PROMPT, [PROMPT]))
    assert torch.equal(same.latents, video.latents)
    assert torch.equal(also[0].latents, several[0].latents)


@pytest.mark.parametrize("output_type", ["np", "pil"])
def test_what_diffusers_export_writes(shallow, person, tmp_path, output_type, monkeypatch):
    """export_to_video multiplies arrays by 255, whatever they hold: README says which output types it takes."""
    import av

    monkeypatch.setattr("diffusers.utils.export_utils.is_imageio_available", lambda: False)  # else by OpenCV
    frames = shallow.generate(
        person, PROMPT, num_inference_steps=1, num_frames=9, seed=1, output_type=output_type
    ).frames
    path = export_to_video(frames, str(tmp_path / "out.mp4"), fps=8)
    with av.open(path) as container:
        written = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    expected = shallow.generate(person, PROMPT, num_inference_steps=1, num_frames=9, seed=1).frames
    assert np.corrcoef(written.ravel(), np.asarray(expected).ravel())[0, 1] > 0.7  # noise, and the encoder loses some
