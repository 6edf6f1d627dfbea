"""What plug-ins use of other servers, and what the wheels of these have: `python -m support.signatures WHEEL...`, with
PYTHONPATH=tests, writes it to tests/serve/signatures.json. The wheels, from PyPI: pip download --no-deps."""

import ast
import hashlib
import json
import sys
import zipfile
from pathlib import Path

from consisid.engine.serve.plugged import PASSED

FILE = Path(__file__).parents[1] / "serve" / "signatures.json"
OMNI, SGLANG = "vllm_omni", "sglang"
# Of each package: file, definition, names that it has to have as parameters, fields or methods.
USED = [
    (OMNI, "diffusion/registry.py", "register_diffusion_model",
     ["model_arch", "module_name", "class_name", "post_process_func_name"]),
    (OMNI, "diffusion/data.py", "DiffusionOutput", ["output", "error", "error_status_code", "error_type"]),
    (OMNI, "inputs/data.py", "OmniDiffusionSamplingParams",
     ["extra_args", *(name for name in PASSED if name != "negative_prompt")]),
    (OMNI, "diffusion/worker/request_batch.py", "DiffusionRequestBatch", ["prompts", "sampling_params"]),
    (OMNI, "entrypoints/openai/protocol/videos.py", "VideoGenerationRequest", ["extra_params"]),
    (SGLANG, "multimodal_gen/registry.py", "register_pipeline",
     ["pipeline_cls", "sampling_param_cls", "pipeline_config_cls", "model_detectors", "overwrite"]),
    (SGLANG, "multimodal_gen/runtime/pipelines_core/composed_pipeline_base.py", "ComposedPipelineBase",
     ["pipeline_name", "_required_config_modules", "load_modules", "create_pipeline_stages", "add_stage"]),
    (SGLANG, "multimodal_gen/runtime/pipelines_core/stages/base.py", "PipelineStage", ["forward"]),
    (SGLANG, "multimodal_gen/runtime/pipelines_core/schedule_batch.py", "OutputBatch", ["output", "fps", "error"]),
    (SGLANG, "multimodal_gen/configs/pipeline_configs/base.py", "PipelineConfig",
     ["task_type", "skip_input_image_preprocess"]),
    (SGLANG, "multimodal_gen/configs/sample/sampling_params.py", "SamplingParams",
     [*PASSED, "image_path", "prompt", "video_request_extra_fields"]),
    (SGLANG, "multimodal_gen/configs/task_type.py", "ModelTaskType", ["TI2V"]),
    (SGLANG, "multimodal_gen/runtime/entrypoints/http_server.py", "create_app", ["server_args"]),
    (SGLANG, "srt/plugins/hook_registry.py", "register", ["target", "hook", "hook_type"]),
    (SGLANG, "srt/plugins/hook_registry.py", "HookType", ["AFTER"]),
    (SGLANG, "multimodal_gen/runtime/platforms/plugins.py", "HookRegistry", ["_hooks"]),
]  # fmt: skip
GROUPS = {OMNI: ("plugins/__init__.py", "vllm_omni.general_plugins"),
          SGLANG: ("multimodal_gen/runtime/platforms/plugins.py", "sglang.multimodal_gen.plugins")}  # fmt: skip


def signature(source: str, definition: str) -> list[str]:
    """Parameters of a function, or fields and methods of a class, of which the first with that name counts."""
    found = next(node for node in ast.walk(ast.parse(source)) if getattr(node, "name", None) == definition)
    if isinstance(found, ast.FunctionDef):
        known = {each.arg for each in (*found.args.args, *found.args.kwonlyargs)}
    else:
        known = {each.name for each in found.body if isinstance(each, ast.FunctionDef)}
        targets = [each.target for each in found.body if isinstance(each, ast.AnnAssign)]
        targets += [target for each in found.body if isinstance(each, ast.Assign) for target in each.targets]
        known |= {target.id for target in targets if isinstance(target, ast.Name)}
    return sorted(known)


def main(wheels: list[str]) -> None:
    found = {}
    for wheel in map(Path, wheels):
        package, version = wheel.name.split("-")[:2]
        with zipfile.ZipFile(wheel) as archive:

            def source(file: str, archive=archive, package=package) -> str:
                return archive.read(f"{package}/{file}").decode()

            found[package] = {
                "version": version,
                "wheel": wheel.name,
                "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
                "group": GROUPS[package][1] if f'"{GROUPS[package][1]}"' in source(GROUPS[package][0]) else None,
                "signatures": {
                    f"{file}:{name}": signature(source(file), name) for of, file, name, _ in USED if of == package
                },
            }
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
