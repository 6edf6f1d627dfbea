"""ConsisID in SGLang's diffusion server: `sglang serve --model-path ENGINE_DIR`, where its path has "consisid" in it.

Registered by the entry point of the group sglang.multimodal_gen.plugins. Written against SGLang 0.5.23.
"""


def register() -> None:
    """Tell SGLang about the pipeline."""
    from sglang.multimodal_gen.registry import register_pipeline

    from . import sglang_pipeline as ours

    register_pipeline(
        ours.SglangConsisID,
        sampling_param_cls=ours.SamplingParams,
        pipeline_config_cls=ours.Config,
        model_detectors=[lambda path: "consisid" in path.lower()],
        overwrite=True,
    )
