"""ConsisID in other servers and in ComfyUI: with stand-ins of what they give, whose names are checked against what the
published wheels have, and against the packages where these are installed."""

import importlib
import io
import json
import re
import sys
import tomllib
import types
from dataclasses import make_dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from skimage.data import astronaut
from support import signatures
from support.signatures import GROUPS, USED

from consisid.engine.serve import sglang, vllm_omni
from consisid.engine.serve.characters import Characters, People
from consisid.engine.serve.plugged import PASSED

ROOT = Path(__file__).parents[2]
WHEELS = json.loads(signatures.FILE.read_text())
SMALL = {"num_frames": 9, "num_inference_steps": 1, "height": None, "width": None, "guidance_scale": 6.0, "seed": 1}


def package(name: str) -> Path:
    """Its folder; skips the test where it is not installed. It is read, not imported."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{name} is not installed")
    return Path(next(iter(found.submodule_search_locations)))


@pytest.mark.parametrize(("name", "file", "definition", "names"), USED, ids=lambda value: str(value)[:60])
def test_what_is_used_of_others_is_in_their_wheels(name, file, definition, names):
    """As support/signatures.py found it there; of which versions, the modules and the page say."""
    wheel = WHEELS[name]
    assert sorted(set(names) - set(wheel["signatures"][f"{file}:{definition}"])) == []
    plugin = importlib.import_module(f"consisid.engine.serve.{name}")
    for text in (plugin.__doc__, (ROOT / "docs/serving.md").read_text()):
        assert re.sub(r"\.0$", "", wheel["version"]) in text


@pytest.mark.parametrize(("name", "file", "definition", "names"), USED, ids=lambda value: str(value)[:60])
def test_what_is_used_of_others_is_there(name, file, definition, names):
    found = signatures.signature((package(name) / file).read_text(), definition)
    assert sorted(set(names) - set(found)) == []


@pytest.mark.parametrize("name", GROUPS)
def test_the_groups_of_entry_points_are_theirs(name):
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, function = points[WHEELS[name]["group"]]["consisid"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_groups_are_those_that_are_checked():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(points) == {wheel["group"] for wheel in WHEELS.values()} == {group for _, group in GROUPS.values()}


def module(monkeypatch, name, **members):
    """A stand-in of somebody's module."""
    made = types.ModuleType(name)
    vars(made).update(members)
    monkeypatch.setitem(sys.modules, name, made)


ONE_PERSON = "ConsisID needs one person: a photo as input_reference, or the id of a character."


@pytest.fixture
def face():
    return Image.fromarray(astronaut())


@pytest.fixture
def character(face, monkeypatch, tmp_path) -> str:
    """The id of one that was stored where all processes look."""
    monkeypatch.setattr("consisid.engine.serve.characters.default_data", lambda: tmp_path / "home")
    photo = io.BytesIO()
    face.save(photo, "PNG")
    return People().add("Eileen", "largest", [photo.getvalue()])["id"]


def test_vllm_omni(shallow_folder, monkeypatch, face, character):
    registered = []
    output = types.SimpleNamespace
    module(monkeypatch, "vllm_omni.diffusion.registry",
           register_diffusion_model=lambda *given, **more: registered.append((given, more)))  # fmt: skip
    module(monkeypatch, "vllm_omni.diffusion.data", DiffusionOutput=output)
    vllm_omni.register()
    ((name, place, what), more) = registered[0]
    made = importlib.import_module(place)
    pipeline = getattr(made, what)(od_config=types.SimpleNamespace(model=str(shallow_folder)))
    assert name == "ConsisIDPipeline"
    assert pipeline.load_weights(iter(())) == set()
    prompt = {"prompt": "A woman.", "negative_prompt": "dark", "multi_modal_data": {"image": face}}
    request = types.SimpleNamespace(prompts=[prompt], sampling_params=types.SimpleNamespace(**SMALL))
    frames = pipeline(request).output
    found = getattr(made, more["post_process_func_name"])(None)(frames)["payload"]["video"]
    assert (found.shape, found.dtype) == ((1, 9, 96, 144, 3), np.float32)
    assert 0 <= found.min() < found.max() <= 1
    del prompt["multi_modal_data"]
    refused = pipeline(request)
    assert (refused.error_status_code, refused.error) == (400, ONE_PERSON)
    request.sampling_params.extra_args = {"character": character}
    assert torch.equal(pipeline(request).output, frames)
    request.sampling_params.extra_args = {"character": "char_00"}
    assert pipeline(request).error.startswith("There is no such character")


def test_sglang(shallow_folder, monkeypatch, face, character, tmp_path):
    base = "sglang.multimodal_gen"
    core = f"{base}.runtime.pipelines_core"
    registered = {}

    class Composed:
        def __init__(self, model_path, server_args):
            self.model_path, self.stages = model_path, []
            self.modules = self.load_modules(server_args)
            self.create_pipeline_stages(server_args)

        def add_stage(self, stage):
            self.stages.append(stage)

    module(monkeypatch, f"{base}.registry",
           register_pipeline=lambda cls, **more: registered.update(cls=cls, **more))  # fmt: skip
    module(monkeypatch, f"{base}.configs.pipeline_configs.base", PipelineConfig=object)
    hooks = []
    module(monkeypatch, f"{base}.runtime.platforms.plugins", HookType=types.SimpleNamespace(AFTER="after"),
           HookRegistry=types.SimpleNamespace(register=lambda *given: hooks.append(given)))  # fmt: skip
    theirs = make_dataclass("SamplingParams", [(name, object) for name in ("prompt", "image_path", *PASSED)])
    module(monkeypatch, f"{base}.configs.sample", sampling_params=types.SimpleNamespace(SamplingParams=theirs))
    module(monkeypatch, f"{base}.configs.task_type", ModelTaskType=types.SimpleNamespace(TI2V="TI2V"))
    module(monkeypatch, f"{core}.composed_pipeline_base", ComposedPipelineBase=Composed)
    module(monkeypatch, f"{core}.schedule_batch", OutputBatch=types.SimpleNamespace)
    module(monkeypatch, f"{core}.stages.base", PipelineStage=object)
    monkeypatch.delitem(sys.modules, "consisid.engine.serve.sglang_pipeline", raising=False)
    sglang.register()
    (detector,) = registered["model_detectors"]
    assert detector("engines/ConsisID-preview")
    assert not detector("engines/other")
    (stage,) = registered["cls"](str(shallow_folder), None).stages
    face.save(tmp_path / "me.png")
    params = registered["sampling_param_cls"]
    assert params.video_request_extra_fields() == {"character"}
    asked = params(prompt="A woman.", negative_prompt="dark", image_path=[str(tmp_path / "me.png")], **SMALL)
    made = stage.forward(types.SimpleNamespace(sampling_params=asked), None)
    assert (made.output.shape, made.fps) == ((1, 3, 9, 96, 144), 8)
    asked.image_path = None
    assert stage.forward(types.SimpleNamespace(sampling_params=asked), None).error == ONE_PERSON
    asked.character = character
    again = stage.forward(types.SimpleNamespace(sampling_params=asked), None)
    assert torch.equal(again.output, made.output)
    ((target, hook, kind),) = hooks
    assert (target, kind) == (sglang.CREATE_APP, "after")
    app = FastAPI()
    assert hook(app, None) is app
    assert [each.cls for each in app.user_middleware] == [Characters]
    sys.modules.pop("consisid.engine.serve.sglang_pipeline")


@pytest.fixture
def nodes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    found = importlib.import_module("comfyui")
    yield found.NODE_CLASS_MAPPINGS
    for name in ("comfyui", "comfyui.nodes"):
        sys.modules.pop(name)


def test_nodes_of_comfyui(nodes, shallow_folder, monkeypatch):
    """As ComfyUI runs them: classes with INPUT_TYPES, RETURN_TYPES and FUNCTION, called in inference mode."""

    def call(name, **inputs):
        node = nodes[name]
        asked = node.INPUT_TYPES()["required"]
        assert set(inputs) <= set(asked)
        given = {
            field: inputs.get(field, kind[1].get("default") if len(kind) > 1 else None) for field, kind in asked.items()
        }
        with torch.inference_mode():
            found = getattr(node(), node.FUNCTION)(**given)
        assert len(found) == len(node.RETURN_TYPES)
        return found

    seen = []

    class Bar:
        def __init__(self, total):
            seen.append(total)

        def update_absolute(self, value, total):
            seen.append(value)

    module(monkeypatch, "comfy")
    module(monkeypatch, "comfy.model_management", throw_exception_if_processing_interrupted=lambda: None)
    module(monkeypatch, "comfy.utils", ProgressBar=Bar)
    sys.modules["comfy"].model_management = sys.modules["comfy.model_management"]
    (engine,) = call("ConsisIDOpenEngine", folder=str(shallow_folder))
    image = torch.from_numpy(astronaut()[None].astype(np.float32) / 255)
    person, crop = call("ConsisIDPersonFromImage", engine=engine, image=image)
    assert (crop.shape, crop.dtype) == ((1, 512, 512, 3), torch.float32)
    frames, fps = call("ConsisIDGenerate", engine=engine, person=person, prompt="A woman.", steps=2, num_frames=9)
    assert (frames.shape, frames.dtype, fps) == ((9, 96, 144, 3), torch.float32, 8.0)
    assert 0 <= frames.min() < frames.max() <= 1
    assert seen == [2, 1, 2]
