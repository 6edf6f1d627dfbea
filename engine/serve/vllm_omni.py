"""ConsisID in vLLM-Omni: `vllm serve ENGINE_DIR --omni --model-class-name ConsisIDPipeline`.

Registered by the entry point of the group vllm_omni.general_plugins. Written against vLLM-Omni 0.30: a pipeline is a
module with load_weights and forward, and takes one request at a time, with a photo or, in its extra_params, the id of a
character. vLLM-Omni has no characters: `--middleware consisid.engine.serve.characters.Characters` adds their route.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..api import ConsisID
from ..errors import ConsisIDError
from .plugged import video

NAME = "ConsisIDPipeline"  # as diffusers calls it in model_index.json


def register() -> None:
    """Tell vLLM-Omni about the pipeline; in every process of it, perhaps several times."""
    from vllm_omni.diffusion.registry import register_diffusion_model

    register_diffusion_model(NAME, __name__, OmniConsisID.__name__, post_process_func_name=post_process.__name__)


class OmniConsisID(torch.nn.Module):
    """A pipeline of vLLM-Omni. The weights are the engine's; what it is offered of a checkpoint is not read."""

    supports_request_batch = False
    supports_step_execution = False

    def __init__(self, *, od_config: Any, prefix: str = ""):
        super().__init__()
        self.engine = ConsisID.open(od_config.model)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]] = ()) -> set[str]:
        return set()

    def forward(self, req: Any) -> Any:
        """A DiffusionOutput with frames [1, F, 3, H, W], or with the sentence of an error."""
        from vllm_omni.diffusion.data import DiffusionOutput

        prompt = req.prompts[0]
        given: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
        photo = (given.get("multi_modal_data") or {}).get("image")
        asked = {name: getattr(req.sampling_params, name, None) for name in vars(req.sampling_params)}
        try:
            asked["negative_prompt"] = given.get("negative_prompt")
            character = (asked.get("extra_args") or {}).get("character")
            return DiffusionOutput(output=video(self.engine, given["prompt"], photo, character, asked)[None])
        except ConsisIDError as error:
            return DiffusionOutput(error=str(error), error_status_code=400, error_type=type(error).__name__)


def post_process(od_config: Any) -> Callable[..., dict[str, Any]]:
    """What turns the output into arrays float32 [1, F, H, W, 3] in [0, 1]."""

    def convert(frames: torch.Tensor, output_type: str = "np", sampling_params: Any = None) -> dict[str, Any]:
        return {"payload": {"video": frames.permute(0, 1, 3, 4, 2).numpy()}, "metadata": {}}

    return convert
