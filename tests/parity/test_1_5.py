"""Small models of the 1.5 kind against what the authors' pipeline made of them: docs/parity-1.5.md."""

import diffusers
import pytest
import torch
from support.authors import NOISE, SPARSE, STEPS, WEIGHTS, Case, cases, kept, models
from support.reference import FRAMES, LATENTS, PROMPT

from consisid.bench.core.inputs import identity
from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.export import build


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory):
    opened = {}

    def engine(model: str) -> ConsisID:
        if model not in opened:
            folder = tmp_path_factory.mktemp("model")
            build(
                write_checkpoint(models()[model], folder / "checkpoint", seed=WEIGHTS),
                folder / "engine",
                backend="eager",
            )
            opened[model] = ConsisID.open(folder / "engine")
        return opened[model]

    return engine


@pytest.mark.parametrize("case", [case for case in cases() if case.kept], ids=lambda case: case.name)
def test_the_authors_video(engine_of, case: Case):
    engine, reference = engine_of(case.model), kept()
    engine.scheduler = getattr(diffusers, case.scheduler).from_config(engine.scheduler.config)
    options = {
        "seed": NOISE, "num_frames": case.frames, "num_inference_steps": STEPS, "guidance_scale": case.guidance,
        "use_dynamic_cfg": case.dynamic,
    }  # fmt: skip
    person = identity(engine.variant)
    latents = engine.generate(person, PROMPT, output_type="latent", **options).latents
    assert (latents - reference[f"{case.name}/latents"]).abs().max() < LATENTS
    frames = torch.from_numpy(engine.generate(person, PROMPT, output_type="np", **options).frames)
    assert len(frames) == case.frames
    assert (frames[:, ::SPARSE, ::SPARSE] - reference[f"{case.name}/frames"]).abs().max() < FRAMES
