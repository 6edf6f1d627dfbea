"""ConsisID in other servers and in ComfyUI: with stand-ins of what they give, whose names are checked against the real
packages where these are installed."""

import ast
import importlib
import sys
import tomllib
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from consisid.engine.serve import sglang, vllm_omni
from consisid.engine.serve.plugged import PASSED

ROOT = Path(__file__).parents[2]
SMALL = {"num_frames": 9, "num_inference_steps": 1, "height": None, "width": None, "guidance_scale": 6.0, "seed": 1}
OMNI, SGLANG = "vllm_omni", "sglang"
# Of each package: file, definition, names that it has to have as parameters, fields or methods.
USED = [
    (OMNI, "diffusion/registry.py", "register_diffusion_model",
     ["model_arch", "module_name", "class_name", "post_process_func_name"]),
    (OMNI, "diffusion/data.py", "DiffusionOutput", ["output", "error", "error_status_code", "error_type"]),
    (OMNI, "inputs/data.py", "OmniDiffusionSamplingParams", [name for name in PASSED if name != "negative_prompt"]),
    (OMNI, "diffusion/worker/request_batch.py", "DiffusionRequestBatch", ["prompts", "sampling_params"]),
    (SGLANG, "multimodal_gen/registry.py", "register_pipeline",
     ["pipeline_cls", "sampling_param_cls", "pipeline_config_cls", "model_detectors", "overwrite"]),
    (SGLANG, "multimodal_gen/runtime/pipelines_core/composed_pipeline_base.py", "ComposedPipelineBase",
     ["pipeline_name", "_required_config_modules", "load_modules", "create_pipeline_stages", "add_stage"]),
    (SGLANG, "multimodal_gen/runtime/pipelines_core/stages/base.py", "PipelineStage", ["forward"]),
    (SGLANG, "multimodal_gen/runtime/pipelines_core/schedule_batch.py", "OutputBatch", ["output", "fps", "error"]),
    (SGLANG, "multimodal_gen/configs/pipeline_configs/base.py", "PipelineConfig",
     ["task_type", "skip_input_image_preprocess"]),
    (SGLANG, "multimodal_gen/configs/sample/sampling_params.py", "SamplingParams", [*PASSED, "image_path", "prompt"]),
    (SGLANG, "multimodal_gen/configs/task_type.py", "ModelTaskType", ["I2V"]),
]  # fmt: skip
GROUPS = {OMNI: ("plugins/__init__.py", "vllm_omni.general_plugins"),
          SGLANG: ("multimodal_gen/runtime/platforms/plugins.py", "sglang.multimodal_gen.plugins")}  # fmt: skip


def package(name: str) -> Path:
    """Its folder; skips the test where it is not installed. It is read, not imported."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{name} is not installed")
    return Path(next(iter(found.submodule_search_locations)))


@pytest.mark.parametrize(("name", "file", "definition", "names"), USED, ids=lambda value: str(value)[:60])
def test_what_is_used_of_others_is_there(name, file, definition, names):
    tree = ast.parse((package(name) / file).read_text())
    found = next(node for node in ast.walk(tree) if getattr(node, "name", None) == definition)
    if isinstance(found, ast.FunctionDef):
        known = {each.arg for each in (*found.args.args, *found.args.kwonlyargs)}
    else:
        known = {each.name for each in found.body if isinstance(each, ast.FunctionDef)}
        targets = [each.target for each in found.body if isinstance(each, ast.AnnAssign)]
        targets += [target for each in found.body if isinstance(each, ast.Assign) for target in each.targets]
        known |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert sorted(set(names) - known) == []


@pytest.mark.parametrize("name", GROUPS)
def test_the_groups_of_entry_points_are_theirs(name):
    file, group = GROUPS[name]
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, function = points[group]["consisid"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert f'"{group}"' in (package(name) / file).read_text()


def test_groups_are_those_that_are_checked():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(points) == {group for _, group in GROUPS.values()}


def module(monkeypatch, name, **members):
    """A stand-in of somebody's module."""
    made = types.ModuleType(name)
    vars(made).update(members)
    monkeypatch.setitem(sys.modules, name, made)


@pytest.fixture
def face():
    return Image.fromarray(astronaut())


def test_vllm_omni(shallow_folder, monkeypatch, face):
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
    without = types.SimpleNamespace(prompts=["A woman."], sampling_params=types.SimpleNamespace(**SMALL))
    refused = pipeline(without)
    assert (refused.error_status_code, refused.error) == (
        400, "ConsisID needs a photo; give one as input_reference.",
    )  # fmt: skip


def test_sglang(shallow_folder, monkeypatch, face, tmp_path):
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
    module(monkeypatch, f"{base}.configs.sample.sampling_params", SamplingParams=types.SimpleNamespace)
    module(monkeypatch, f"{base}.configs.task_type", ModelTaskType=types.SimpleNamespace(I2V="I2V"))
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
    asked = types.SimpleNamespace(
        prompt="A woman.", negative_prompt="dark", image_path=[str(tmp_path / "me.png")], **SMALL
    )
    made = stage.forward(types.SimpleNamespace(sampling_params=asked), None)
    assert (made.output.shape, made.fps) == ((1, 3, 9, 96, 144), 8)
    asked.image_path = None
    assert stage.forward(types.SimpleNamespace(sampling_params=asked), None).error.startswith("ConsisID needs a photo")
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
