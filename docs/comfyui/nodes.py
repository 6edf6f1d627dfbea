"""The nodes. Errors of the engine are raised as they are: ComfyUI shows their sentence at the node."""

from typing import Any, ClassVar

from torch import Tensor

from consisid.engine import ConsisID

ENGINE, PERSON = "CONSISID_ENGINE", "CONSISID_PERSON"
CATEGORY = "ConsisID"


class OpenEngine:
    """An engine folder made by consisid-build."""

    CATEGORY, FUNCTION = CATEGORY, "open"
    RETURN_TYPES, RETURN_NAMES = (ENGINE,), ("engine",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"folder": ("STRING", {"default": "engines/preview"}), "memory": ("STRING", {"default": ""})}
        }

    def open(self, folder: str, memory: str) -> tuple[ConsisID]:
        return (ConsisID.open(folder, memory=memory or None),)


class PersonFromImage:
    """Who is in a photo. face: largest, center, a number from the left, or a box x0,y0,x1,y1."""

    CATEGORY, FUNCTION = CATEGORY, "identify"
    RETURN_TYPES, RETURN_NAMES = (PERSON, "IMAGE"), ("person", "face")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"engine": (ENGINE,), "image": ("IMAGE",), "face": ("STRING", {"default": "largest"})}}

    def identify(self, engine: ConsisID, image: Tensor, face: str) -> tuple[Any, Tensor]:
        import numpy as np
        import torch

        from consisid.engine.flags import face_choice

        person = engine.identify([photo.numpy() for photo in image], face=face_choice(face))
        crop = torch.from_numpy(np.array(person.preview().convert("RGB"), dtype=np.float32) / 255)
        return person, crop[None]


class Generate:
    """A video of a person."""

    CATEGORY, FUNCTION = CATEGORY, "generate"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "FLOAT"), ("frames", "fps")
    LARGEST: ClassVar[int] = 2**63 - 1

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "engine": (ENGINE,),
                "person": (PERSON,),
                "prompt": ("STRING", {"multiline": True}),
                "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
                "steps": ("INT", {"default": 50, "min": 1, "max": 1000}),
                "guidance_scale": ("FLOAT", {"default": 6.0, "min": 0.0, "max": 100.0, "step": 0.1}),
                "seed": ("INT", {"default": 0, "min": 0, "max": cls.LARGEST}),
                "num_frames": ("INT", {"default": 0, "min": 0, "max": 10000, "tooltip": "0: what it was built for"}),
                "cache": ("STRING", {"default": "", "tooltip": "step cache: a threshold such as 0.15, or 2x"}),
            }
        }

    def generate(
        self, engine: ConsisID, person: Any, prompt: str, negative_prompt: str, steps: int, guidance_scale: float,
        seed: int, num_frames: int, cache: str,
    ) -> tuple[Tensor, float]:  # fmt: skip
        from consisid.engine.flags import factor

        bar = progress_bar(steps)

        def step(_engine: Any, index: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            bar(index + 1)
            return tensors

        video = engine.generate(
            person, prompt, negative_prompt=negative_prompt or None, num_inference_steps=steps,
            guidance_scale=guidance_scale, seed=seed, num_frames=num_frames or None, output_type="pt",
            shortcuts={"cache": factor(cache)} if cache else None, callback_on_step_end=step,
        )  # fmt: skip
        return video.frames.permute(0, 2, 3, 1).float().cpu(), float(video.fps)


def progress_bar(steps: int) -> Any:
    """ComfyUI's bar, which also raises where somebody has pressed its cancel button; nothing outside of ComfyUI."""
    try:
        import comfy.model_management as management
        from comfy.utils import ProgressBar
    except ImportError:
        return lambda step: None
    bar = ProgressBar(steps)

    def show(step: int) -> None:
        bar.update_absolute(step, steps)
        management.throw_exception_if_processing_interrupted()

    return show


NODE_CLASS_MAPPINGS = {
    "ConsisIDOpenEngine": OpenEngine, "ConsisIDPersonFromImage": PersonFromImage, "ConsisIDGenerate": Generate,
}  # fmt: skip
NODE_DISPLAY_NAME_MAPPINGS = {
    "ConsisIDOpenEngine": "ConsisID: open an engine",
    "ConsisIDPersonFromImage": "ConsisID: person from an image",
    "ConsisIDGenerate": "ConsisID: make a video",
}
