"""The drop-in over a checkpoint of the 1.5 kind, for whose transformer diffusers has no class."""

import inspect
import json

import pytest
import torch
from diffusers import ConsisIDTransformer3DModel as Diffusers

from consisid.bench.core.inputs import identity
from consisid.engine import ConsisID, ConsisIDPipeline
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.checkpoint.transformer_module import ConsisIDTransformer3DModel
from consisid.engine.errors import DeviceMemoryError, InputError
from consisid.engine.networks.positions import rotary_tables
from consisid.engine.pipeline.components import variant_of
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import TINY_1_5

pytestmark = pytest.mark.slow

ADDED = {"patch_size_t": 2, "patch_bias": False, "ofs_embed_dim": 64}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(TINY_1_5, tmp_path_factory.mktemp("drop-in") / "checkpoint")


@pytest.fixture(scope="module")
def pipe(checkpoint):
    found = ConsisIDPipeline.from_pretrained(checkpoint)
    found.set_progress_bar_config(disable=True)
    return found


def call(pipe, **options):
    person = identity(TINY_1_5)
    given = {
        "image": person.image, "prompt": "A person walks.", "id_cond": person.id_cond,
        "id_vit_hidden": list(person.id_vit_hidden), "height": 96, "width": 144, "num_frames": 9,
        "num_inference_steps": 2, "max_sequence_length": 32, "generator": torch.Generator().manual_seed(1),
        "output_type": "latent",
    }  # fmt: skip
    return pipe(**{**given, **options}).frames


def test_from_pretrained_saved_and_compiled(pipe, checkpoint, tmp_path):
    latents = call(pipe)
    assert latents.shape == (1, 4, 16, 12, 18)  # three latent frames and one of padding
    assert call(pipe, output_type="np").shape == (1, 9, 96, 144, 3)
    pipe.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "transformer" / "config.json").read_text())
    assert {name: saved[name] for name in ADDED} == ADDED
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text())["transformer"] == [
        "diffusers", "ConsisIDTransformer3DModel",
    ]  # fmt: skip
    again = ConsisIDPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.float32)
    assert torch.equal(call(again), latents)
    compiled = ConsisIDPipeline.from_pretrained(checkpoint)
    compiled.compile(tmp_path / "engine", backend="eager")
    assert torch.equal(call(compiled), latents)
    assert isinstance(compiled.transformer.module, ConsisIDTransformer3DModel)


def test_where_the_folder_does_not_open_the_modules_are_back(checkpoint, tmp_path, monkeypatch):
    loaded = ConsisIDPipeline.from_pretrained(checkpoint)
    expected = call(loaded)

    def full(*given, **options):
        raise DeviceMemoryError("There is no room.")

    monkeypatch.setattr(ConsisID, "open", full)
    with pytest.raises(DeviceMemoryError):
        loaded.compile(tmp_path / "engine", backend="eager")
    assert torch.equal(call(loaded), expected)


def test_settings_make_the_module_again(pipe):
    again = ConsisIDTransformer3DModel.from_config(pipe.transformer.config)
    assert [x.shape for x in again.parameters()] == [x.shape for x in pipe.transformer.parameters()]
    assert ADDED.items() <= again.config.items()
    own = variant_of({"transformer": pipe.transformer, "vae": pipe.vae, "text_encoder": pipe.text_encoder}, 32, None)
    assert (own.name, own.height, own.width, own.num_frames) == ("tiny-1.5", 96, 144, 17)


def test_latents_and_frames_of_its_methods(pipe):
    image = torch.zeros(1, 3, 96, 144)
    generator = torch.Generator().manual_seed(0)
    # As there, frames that a caller has padded himself are the same.
    for frames in (9, 13):
        latents, begin = pipe.prepare_latents(image, 1, 16, frames, 96, 144, torch.float32, "cpu", generator)
        assert latents.shape == begin.shape == (1, 4, 16, 12, 18)
        # The image, and before frames that were not padded the image once more.
        assert [bool(frame.any()) for frame in begin[0]] == [True, frames == 9, False, False]
    assert pipe.decode_latents(call(pipe)[:, 1:]).shape == (1, 3, 9, 96, 144)


@torch.no_grad()
def test_the_module_predicts_what_the_graphs_do(pipe):
    """Its forward is written on diffusers' layers."""
    from consisid.engine.conditioning import condition, extract_face
    from consisid.engine.prediction import predict, time_table

    shape, config, person = VideoShape.of(TINY_1_5, 96, 144, 9), TINY_1_5.transformer, identity(TINY_1_5)
    generator = torch.Generator().manual_seed(2)
    latents, image = (torch.randn(1, 4, 16, 12, 18, generator=generator) for _ in range(2))
    text, step = torch.randn(1, 32, 64, generator=generator), torch.tensor([311])
    cos, sin = (x.repeat_interleave(2, dim=1) for x in rotary_tables(config, shape))
    theirs = pipe.transformer(
        torch.cat((latents, image), dim=2), text, step, ofs=torch.tensor([2.0]), image_rotary_emb=(cos, sin),
        id_cond=person.id_cond, id_vit_hidden=list(person.id_vit_hidden), return_dict=False,
    )[0]  # fmt: skip
    engine = pipe.engine_for(32)
    networks, positions = engine.networks(shape), engine.conditioner.positions(shape)
    given = condition(networks, positions, text, image, extract_face(networks, person))
    ours = predict(networks, latents, 0, time_table(networks, step), given)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_the_module_wants_a_person(pipe):
    with pytest.raises(InputError, match="give id_cond and id_vit_hidden"):
        pipe.transformer(
            torch.zeros(1, 4, 32, 12, 18), torch.zeros(1, 32, 64), torch.tensor([1]), ofs=torch.tensor([2.0]),
            image_rotary_emb=tuple(torch.zeros(108, 64) for _ in range(2)),
        )  # fmt: skip


def test_diffusers_has_no_class_for_it():
    """When this fails, transformer_module.py can go."""
    assert not ADDED.keys() & inspect.signature(Diffusers.__init__).parameters.keys()
