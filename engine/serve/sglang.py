"""ConsisID in SGLang's diffusion server: `sglang serve --model-path ENGINE_DIR`, where its path has "consisid" in it.

Registered by the entry point of the group sglang.multimodal_gen.plugins. Written against SGLang 0.5.23.
"""

from typing import Any

CREATE_APP = "sglang.multimodal_gen.runtime.entrypoints.http_server.create_app"


def register() -> None:
    """Tell SGLang about the pipeline, and about the route of characters, which it does not have."""
    from sglang.multimodal_gen.registry import register_pipeline
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry, HookType

    from . import sglang_pipeline as ours

    register_pipeline(
        ours.SglangConsisID,
        sampling_param_cls=ours.SamplingParams,
        pipeline_config_cls=ours.Config,
        model_detectors=[lambda path: "consisid" in path.lower()],
        overwrite=True,
    )
    HookRegistry.register(CREATE_APP, with_characters, HookType.AFTER)


def with_characters(app: Any, *given: Any, **more: Any) -> Any:
    """What SGLang's create_app has made, with /v1/videos/characters in front."""
    from .characters import Characters

    app.add_middleware(Characters)
    return app
