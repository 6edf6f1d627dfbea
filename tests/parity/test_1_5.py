"""Small models of the 1.5 kind: against what the authors' pipeline made of them (docs/parity-1.5.md), and against
themselves in every way in which an engine runs."""

from dataclasses import replace

import diffusers
import pytest
import torch
from support.authors import (
    LESS_SPARSE,
    NOISE,
    ROUNDED,
    SPARSE,
    STEPS,
    WEIGHTS,
    Case,
    cases,
    distance,
    given_tensors,
    kept,
    models,
)  # fmt: skip
from support.autoencoders import without_posterior_noise
from support.engines import SHALLOW
from support.loras import MODULES, lora
from support.reference import FRAMES, LATENTS, PROMPT

from consisid.bench.core.baselines import NoBaselineError, open_pipeline
from consisid.bench.core.inputs import identity
from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.decode.image import first_frames
from consisid.engine.errors import InputError
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import TINY_1_5
from consisid.export import build

pytestmark = pytest.mark.slow

FACTOR = 1.1  # of the reference's own error in bfloat16
OPTIONS = {"seed": 5, "num_inference_steps": 2, "num_frames": 9, "output_type": "latent"}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def folder(model: str):
        if model not in made:
            made[model] = tmp_path_factory.mktemp("model")
            checkpoint = write_checkpoint(models()[model], made[model] / "checkpoint", seed=WEIGHTS)
            build(checkpoint, made[model] / "engine", backend="eager")
        return made[model] / "engine"

    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """TINY_1_5 with a shallow decoder, for what is not about the authors' videos."""
    place = tmp_path_factory.mktemp("shallow")
    variant = replace(TINY_1_5, name="custom", vae=replace(SHALLOW.vae, invert_scale_latents=True))
    build(write_checkpoint(variant, place / "checkpoint"), place / "engine", backend="eager")
    return place / "engine"


@pytest.fixture(scope="module")
def tiny_1_5(folder) -> ConsisID:
    return ConsisID.open(folder)


@pytest.fixture(scope="module")
def person():
    return identity(TINY_1_5)


def latents(engine, person, **options):
    return engine.generate(person, PROMPT, **{**OPTIONS, **options}).latents


@pytest.mark.parametrize("case", [case for case in cases() if case.kept], ids=lambda case: case.name)
def test_the_authors_video(folder_of, case: Case):
    engine, reference = ConsisID.open(folder_of(case.model)), kept()
    engine.scheduler = getattr(diffusers, case.scheduler).from_config(engine.scheduler.config)
    options = {
        "seed": NOISE, "num_frames": case.frames, "num_inference_steps": STEPS, "guidance_scale": case.guidance,
        "use_dynamic_cfg": case.dynamic,
    }  # fmt: skip
    found = latents(engine, identity(engine.variant), **options)
    assert (found - reference[f"{case.name}/latents"]).abs().max() < LATENTS
    frames = torch.from_numpy(engine.generate(identity(engine.variant), PROMPT, output_type="np", **options).frames)
    assert len(frames) == case.frames
    assert (frames[:, ::SPARSE, ::SPARSE] - reference[f"{case.name}/frames"]).abs().max() < FRAMES


@pytest.mark.parametrize("model", ROUNDED)
def test_bf16_error_is_within_the_authors_own(model, tmp_path):
    checkpoint = write_checkpoint(models()[model], tmp_path / "checkpoint", seed=WEIGHTS)
    build(without_posterior_noise(checkpoint), tmp_path / "engine", dtype="bfloat16", backend="eager")
    engine, reference = ConsisID.open(tmp_path / "engine"), kept()
    engine.scheduler = diffusers.CogVideoXDDIMScheduler.from_config(engine.scheduler.config)
    options = {"seed": 0, "num_inference_steps": STEPS, "num_frames": 17, "guidance_scale": 2.0}
    options |= given_tensors(engine.variant)
    person = identity(engine.variant)
    found = engine.generate(person, output_type="latent", **options).latents
    frames = torch.from_numpy(engine.generate(person, output_type="np", **options).frames)
    frames = frames[:, ::LESS_SPARSE, ::LESS_SPARSE]
    errors = reference[f"{model}, rounded/errors"].tolist()
    for kind, got, error in zip(("latents", "frames"), (found, frames), errors, strict=True):
        own = distance(got, reference[f"{model}, rounded/{kind}"].float())
        print(f"{kind}: ours {own:.2e}, theirs {error:.2e}, ratio {own / error:.3f}")
        assert own <= FACTOR * error, kind


def test_streamed_tiled_and_resumed_videos_are_the_same(folder, tiny_1_5, person, tmp_path):
    whole = latents(tiny_1_5, person)
    streaming = ConsisID.open(folder, memory="115MiB")
    assert torch.equal(latents(streaming, person), whole)
    assert streaming.generate(person, PROMPT, **OPTIONS).stats.streamed_bytes > 0
    file = tmp_path / "run.safetensors"

    def stop(pipeline, step, timestep, tensors):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latents(tiny_1_5, person, checkpoint=file, checkpoint_every=1, callback_on_step_end=stop)
    assert torch.equal(latents(tiny_1_5, person, checkpoint=file), whole)
    options = {**OPTIONS, "output_type": "np"}
    exact, frames = (
        torch.from_numpy(tiny_1_5.generate(person, PROMPT, **options, decode=mode).frames) for mode in ("exact", None)
    )
    assert (exact - frames).abs().max() < 1e-4


def test_guidance_in_two_passes_is_the_same(tiny_1_5, person):
    assert (latents(tiny_1_5, person, cfg="sequential") - latents(tiny_1_5, person)).abs().max() < LATENTS


def test_loras_come_and_go(tiny_1_5, person):
    """Bit by bit A, B, A and without; its patch embedding is a linear layer and the ofs embedding has LoRAs too."""
    before = latents(tiny_1_5, person)
    for seed, name in enumerate("ab"):
        state = lora(tiny_1_5.checkpoint, seed, modules=(*MODULES, "ofs_embedding.linear_1"))
        tiny_1_5.load_lora_weights(state, adapter_name=name)
    found = []
    for name in "aba":
        tiny_1_5.set_adapters(name)
        found.append(latents(tiny_1_5, person))
    assert torch.equal(found[0], found[2])
    assert min((one - other).abs().max() for one, other in ((found[0], before), (found[0], found[1]))) > 0.1
    tiny_1_5.unload_lora_weights()
    assert torch.equal(latents(tiny_1_5, person), before)


def test_more_than_the_positions_reach_is_refused(tiny_1_5, person):
    assert latents(tiny_1_5, person, height=192, width=192).shape[-2:] == (24, 24)
    with pytest.raises(InputError, match=r"positions for 192x192 \(height x width\) at most and cannot make 208x96"):
        latents(tiny_1_5, person, height=208, width=96)


def test_a_size_without_positions_is_refused_before_anything_is_built(folder_of, tmp_path):
    checkpoint = folder_of(TINY_1_5.name).with_name("checkpoint")
    for options in ({"height": 208}, {"width": 208}):
        with pytest.raises(InputError, match="positions for 192x192"):
            build(checkpoint, tmp_path / "engine", backend="eager", **options)
    assert not any(tmp_path.iterdir())


def test_diffusers_is_no_baseline(tiny_1_5):
    with pytest.raises(NoBaselineError, match=r"no class for the transformer of the tiny-1\.5 model"):
        open_pipeline(tiny_1_5, torch.float32)


def test_key_points_need_a_latent_frame_of_their_own():
    variant = models()["random 2"]
    assert variant.transformer.is_kps
    moments = [torch.zeros(1, 32, 1, 4, 6)] * 2
    shape = VideoShape.of(replace(variant, transformer=replace(variant.transformer, patch_size_t=1)), 32, 48, 1)
    with pytest.raises(InputError, match="Key points take a latent frame of their own"):
        first_frames([moments], [1], torch.Generator(), shape, variant.vae)


def test_latents_come_back_with_their_padding(tiny_1_5, person):
    """As in the authors' pipeline: three latent frames are two patches over time, so there is a fourth in front."""
    found = latents(tiny_1_5, person)
    assert found.shape == (4, 16, 12, 18)
    with pytest.raises(InputError, match=r"latents has the shape .*; for this video it has to be \[1, 4, 16, 12, 18\]"):
        latents(tiny_1_5, person, latents=torch.randn(1, 3, 16, 12, 18))
