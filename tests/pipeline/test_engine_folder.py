"""A pipeline of an engine folder: thin components, nothing imported or loaded that the graphs replace."""

import gc
import json
import shutil
import subprocess
import sys
import weakref

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from diffusers import ConsisIDPipeline as Theirs
from safetensors.torch import load_file, save_file
from support.people import random_identity

from consisid.engine import ConsisID, ConsisIDPipeline
from consisid.engine.errors import DeviceMemoryError, EngineError, InputError
from consisid.export import build

MODELS = """
import json, sys
from diffusers import DiffusionPipeline
from diffusers.loaders import CogVideoXLoraLoaderMixin
before = set(sys.modules)
from consisid.engine import ConsisIDPipeline
pipe = ConsisIDPipeline.from_pretrained(sys.argv[1])
config = pipe.transformer.config.sample_height, pipe.vae.config["scaling_factor"], pipe.vae.dtype
models = [m for m in set(sys.modules) - before if m.startswith(("diffusers.models", "transformers.models"))]
t5 = "transformers.models.t5.modeling_t5" in sys.modules
pipe.text_encoder.get_input_embeddings()
print(json.dumps([models, t5, "transformers.models.t5.modeling_t5" in sys.modules, str(config)]))
"""


@pytest.fixture
def folder(shallow_folder):
    return shallow_folder


@pytest.fixture
def pipe(folder):
    made = ConsisIDPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def call(pipeline, **others):
    """Latents of a call at the folder's own size."""
    variant = pipeline.engine.variant
    person = random_identity(variant)
    given = {
        "image": person.image, "prompt": "A man walks.", "height": variant.height, "width": variant.width,
        "num_frames": 9, "num_inference_steps": 2, "output_type": "latent", "id_cond": person.id_cond,
        "id_vit_hidden": list(person.id_vit_hidden), "generator": torch.Generator().manual_seed(5),
    }  # fmt: skip
    return pipeline(**given | others).frames


def test_models_are_imported_when_a_component_is_asked_for(folder):
    """diffusers' base class imports all of diffusers' models by itself; nothing comes on top of that."""
    given = [sys.executable, "-W", "ignore", "-c", MODELS, str(folder)]
    result = subprocess.run(given, capture_output=True, text=True, check=True)
    models, before, after, config = json.loads(result.stdout.splitlines()[-1])
    assert models == []
    assert (before, after) == (False, True)
    assert config == "(12, 0.7, torch.float32)"


def test_it_computes_what_its_checkpoint_does(pipe, folder):
    checkpoint = pipe.engine.checkpoint.path
    loaded = ConsisIDPipeline.from_pretrained(checkpoint)
    loaded.set_progress_bar_config(disable=True)
    assert call(pipe).equal(call(loaded))


def test_components_and_pipelines_share_the_engine(pipe):
    for other in (ConsisIDPipeline(**pipe.components), ConsisIDPipeline.from_pipe(pipe)):
        assert other.engine is pipe.engine
        assert other.opened is pipe.opened
    assert "AutoencoderKLCogVideoX of" in repr(pipe.vae)
    assert dict(pipe.config)["transformer"] == ("diffusers", "ConsisIDTransformer3DModel")


def test_a_component_is_the_real_one_when_it_is_used(pipe, tmp_path):
    assert type(pipe.transformer.module).__name__ == "ConsisIDTransformer3DModel"
    assert (
        pipe.tokenizer("A man").input_ids
        == pipe.engine.text_encoder.tokenizer(["A man"])[0, : len(pipe.tokenizer("A man").input_ids)].tolist()
    )
    pipe.save_pretrained(tmp_path)
    assert Theirs.from_pretrained(tmp_path).transformer.config.num_layers == pipe.engine.variant.transformer.num_layers


def test_what_a_folder_cannot(pipe):
    with pytest.raises(InputError, match=r"was built in torch\.float32; build another folder for torch\.bfloat16"):
        pipe.to(torch.bfloat16)
    with pytest.raises(InputError, match="its vae cannot be put in another's place"):
        pipe.vae = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match=r"max_sequence_length=31: this model takes 32 tokens"):
        call(pipe, max_sequence_length=31)
    assert pipe.to("cpu") is pipe


def test_the_scheduler_is_assigned(pipe):
    before = call(pipe)
    pipe.scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    assert not call(pipe).equal(before)


def test_compile_builds_once_and_is_found_again(folder, pipe, tmp_path, monkeypatch):
    """In the folder that was named, or in the cache of the home folder."""
    checkpoint = pipe.engine.checkpoint.path
    monkeypatch.setenv("HOME", str(tmp_path))
    built = []

    def counted(*arguments, **options):
        built.append(arguments[1])
        return build(*arguments, **options)

    monkeypatch.setattr("consisid.export.build", counted)
    for place in (None, tmp_path / "mine"):
        made = []
        for _ in range(2):
            each = ConsisIDPipeline.from_pretrained(checkpoint)
            each.set_progress_bar_config(disable=True)
            each.scheduler = CogVideoXDDIMScheduler.from_config(each.scheduler.config)
            expected = call(each)
            assert each.compile(place, backend="eager") is each
            assert call(each).equal(expected)
            made.append(each.opened.folder)
        assert made[0] == made[1]
        assert each.compile() is each
    assert len(built) == 2
    assert built[0].parent == tmp_path / ".cache" / "consisid" / "engines"
    other = ConsisIDPipeline.from_pretrained(checkpoint, torch_dtype=torch.bfloat16)
    with pytest.raises(InputError, match="is there, and is no engine of these weights and settings"):
        other.compile(tmp_path / "mine", backend="eager")


def test_compile_does_not_take_a_folder_of_other_files(pipe, tmp_path, monkeypatch):
    """Of a checkpoint with weights and their fp16 files each has a folder of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoint = shutil.copytree(pipe.engine.checkpoint.path, tmp_path / "checkpoint")
    for part in ("transformer", "vae", "text_encoder"):
        for file in list((checkpoint / part).glob("*.safetensors")):
            state = {name: tensor.half().float() for name, tensor in load_file(file).items()}
            save_file(state, file.with_name(f"{file.stem}.fp16.safetensors"), {"format": "pt"})
    found = []
    for options in ({}, {"variant": "fp16"}):
        each = ConsisIDPipeline.from_pretrained(checkpoint, **options)
        each.set_progress_bar_config(disable=True)
        expected = call(each)
        each.compile(backend="eager")
        assert call(each).equal(expected)
        found.append(each.opened.folder)
    assert found[0] != found[1]


def test_compile_takes_the_weights_as_they_are(folder, pipe, tmp_path):
    changed = ConsisIDPipeline.from_pretrained(pipe.engine.checkpoint.path)
    changed.set_progress_bar_config(disable=True)
    with torch.no_grad():
        changed.transformer.proj_out.weight.mul_(1.5)
    expected = call(changed)
    changed.compile(tmp_path / "mine", backend="eager")
    assert call(changed).equal(expected)
    assert not call(pipe).equal(expected)


MODULES = ("transformer", "text_encoder", "vae")


@pytest.fixture
def loaded(folder, tmp_path):
    """A pipeline with modules of a checkpoint of its own, which has been called, and the folder for its engine."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(ConsisID.open(folder).checkpoint.path, checkpoint)
    made = ConsisIDPipeline.from_pretrained(checkpoint)
    made.set_progress_bar_config(disable=True)
    return made


def modules_of(pipeline):
    """References that do not hold them."""
    return {name: weakref.ref(getattr(pipeline, name)) for name in MODULES}


def test_compile_lets_the_modules_go_before_it_opens_the_folder(loaded, tmp_path, monkeypatch):
    expected, modules, alive, opened = call(loaded), modules_of(loaded), [], ConsisID.open

    def watched(*given, **options):
        alive.extend(name for name, module in modules.items() if module() is not None)
        return opened(*given, **options)

    monkeypatch.setattr(ConsisID, "open", watched)
    loaded.vae.enable_tiling()
    loaded.compile(tmp_path / "engine", backend="eager")
    assert alive == []
    assert loaded.vae.use_tiling
    assert call(loaded).equal(expected)


@pytest.mark.parametrize(
    ("held", "changed"),
    [(False, True), (True, False), *(pytest.param(both, both, marks=pytest.mark.full) for both in (False, True))],
)
def test_where_the_folder_does_not_open_the_modules_are_back(loaded, tmp_path, monkeypatch, held, changed):
    """Read again, or those that somebody else holds."""
    if changed:
        with torch.no_grad():
            loaded.transformer.proj_out.weight.mul_(1.5)
    loaded.vae.enable_tiling()
    expected, modules = call(loaded), modules_of(loaded)
    others = loaded.components if held else None

    def full(*given, **options):
        raise DeviceMemoryError("There is no room.")

    with monkeypatch.context() as patch:
        patch.setattr(ConsisID, "open", full)
        with pytest.raises(DeviceMemoryError):
            loaded.compile(tmp_path / "engine", backend="eager")
    gc.collect()
    if others is not None:
        assert all(getattr(loaded, name) is others[name] for name in MODULES)
    else:
        assert not any(module() for module in modules.values())
    assert loaded.opened is None
    assert loaded.vae.use_tiling
    assert call(loaded).equal(expected)
    assert call(loaded.compile(tmp_path / "engine", backend="eager")).equal(expected)


def test_what_compile_refuses_leaves_the_modules_where_they_are(loaded, tmp_path):
    place = tmp_path / "engine"
    checkpoint = ConsisIDPipeline.from_pretrained(loaded._origin.name)
    checkpoint.compile(place, backend="eager")
    face = next(iter((tmp_path / "checkpoint" / "face_encoder").rglob("*.onnx")))
    face.write_bytes(face.read_bytes() + b"more")
    expected, modules = call(loaded), modules_of(loaded)
    with pytest.raises(EngineError, match=face.name):
        loaded.compile(place, backend="eager")
    assert all(getattr(loaded, name) is module() for name, module in modules.items())
    assert call(loaded).equal(expected)


def test_a_photo_is_identified(pipe):
    """Which diffusers cannot do; from a checkpoint too."""
    from skimage.data import astronaut

    given = {"image": astronaut(), "id_cond": None, "id_vit_hidden": None}
    found = call(pipe, **given)
    loaded = ConsisIDPipeline.from_pretrained(pipe.engine.checkpoint.path)
    loaded.set_progress_bar_config(disable=True)
    assert call(loaded, **given).equal(found)
    with pytest.raises(InputError, match="cannot be identified without face models"):
        call(ConsisIDPipeline(**loaded.components), **given)
