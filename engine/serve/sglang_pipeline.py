"""The classes that SGLang 0.5.23 asks of a pipeline. Imported by SGLang's process only, which has them all."""

from dataclasses import dataclass
from typing import Any

from sglang.multimodal_gen.configs.pipeline_configs.base import PipelineConfig
from sglang.multimodal_gen.configs.sample import sampling_params as theirs
from sglang.multimodal_gen.configs.task_type import ModelTaskType
from sglang.multimodal_gen.runtime.pipelines_core.composed_pipeline_base import ComposedPipelineBase
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import OutputBatch
from sglang.multimodal_gen.runtime.pipelines_core.stages.base import PipelineStage

from ..api import ConsisID
from ..errors import ConsisIDError
from .plugged import video

__all__ = ["Config", "SamplingParams", "SglangConsisID"]


@dataclass
class SamplingParams(theirs.SamplingParams):
    """character: the id of a stored person, instead of a photo."""

    character: str | None = None

    @classmethod
    def video_request_extra_fields(cls) -> frozenset[str]:
        return frozenset({"character"})


@dataclass
class Config(PipelineConfig):
    """A text and a photo, or a character without one, become a video; the photo is not brought to the video's size."""

    task_type: ModelTaskType = ModelTaskType.TI2V
    skip_input_image_preprocess: bool = True


class Make(PipelineStage):
    """The one stage: all of the engine."""

    def __init__(self, engine: ConsisID):
        super().__init__()
        self.engine = engine

    def forward(self, batch: Any, server_args: Any) -> OutputBatch:
        """Frames [1, 3, F, H, W] in [0, 1], or the sentence of an error."""
        asked = batch.sampling_params
        try:
            frames = video(self.engine, asked.prompt, asked.image_path or None, asked.character, asked)
            return OutputBatch(output=frames.permute(1, 0, 2, 3)[None], fps=self.engine.variant.fps)
        except ConsisIDError as error:
            return OutputBatch(error=str(error))


class SglangConsisID(ComposedPipelineBase):
    """A pipeline of SGLang over an engine folder."""

    pipeline_name = "ConsisIDPipeline"
    _required_config_modules: list[str] = []  # noqa: RUF012 - as in the base class

    def load_modules(self, server_args: Any, loaded_modules: Any = None) -> dict[str, Any]:
        """The engine reads its own folder."""
        return {}

    def create_pipeline_stages(self, server_args: Any) -> None:
        self.add_stage(Make(ConsisID.open(self.model_path)))
