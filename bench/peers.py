"""diffusers' ConsisIDPipeline in the forms in which people run it, as rows of a table."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from consisid.engine import ConsisID, Identity

from .random_engine import RandomEngine
from .runs import Sample, prompt_of
from .timing import wait

Place = Callable[[Any, torch.device], None]


def resident(pipeline: Any, device: torch.device) -> None:
    pipeline.to(device)


def compiled(pipeline: Any, device: torch.device) -> None:
    """Each block by itself: they are alike, so one is compiled and the others reuse it."""
    pipeline.to(device)
    for block in pipeline.transformer.transformer_blocks:
        block.compile(dynamic=False)


def group_offload(pipeline: Any, device: torch.device) -> None:
    from diffusers.hooks import apply_group_offloading

    settings = {
        "onload_device": device, "offload_device": torch.device("cpu"), "offload_type": "block_level",
        "num_blocks_per_group": 1, "use_stream": True,
    }  # fmt: skip
    apply_group_offloading(pipeline.transformer, **settings)
    apply_group_offloading(pipeline.text_encoder, **settings)
    pipeline.vae.to(device)


def model_offload(pipeline: Any, device: torch.device) -> None:
    pipeline.enable_model_cpu_offload(device=device)


def sequential_offload(pipeline: Any, device: torch.device) -> None:
    pipeline.enable_sequential_cpu_offload(device=device)


def sliced(place: Place) -> Place:
    def put(pipeline: Any, device: torch.device) -> None:
        place(pipeline, device)
        pipeline.vae.enable_slicing()

    return put


def tiled(place: Place) -> Place:
    def put(pipeline: Any, device: torch.device) -> None:
        sliced(place)(pipeline, device)
        pipeline.vae.enable_tiling()

    return put


@dataclass(frozen=True)
class Peer:
    """A form of diffusers' pipeline.

    reference_gb: (allocated, reserved) that ConsisID's authors state for it, in GB.
    gpu: it moves weights to a GPU and back, so it needs one.
    slow: left out unless asked for.
    """

    name: str
    place: Place
    reference_gb: tuple[float, float] | None = None
    gpu: bool = False
    slow: bool = False


EAGER = Peer("diffusers", resident, (37, 44))
PEERS = (
    EAGER,
    Peer("diffusers, blocks compiled", compiled, slow=True),
    Peer("diffusers, group offload on a stream", group_offload, gpu=True),
    Peer("diffusers, model offload", model_offload, (22, 25), gpu=True),
    Peer("diffusers, sequential offload", sequential_offload, (16, 22), gpu=True),
    Peer("diffusers, sequential offload, slicing", sliced(sequential_offload), (16, 22), gpu=True),
    Peer("diffusers, sequential offload, slicing, tiling", tiled(sequential_offload), (5, 7), gpu=True),
    Peer("diffusers, slicing, tiling", tiled(resident)),
)


def open_pipeline(engine: ConsisID, dtype: torch.dtype) -> Any:
    """diffusers' pipeline with the weights of an engine: from its checkpoint, or the same random ones."""
    if isinstance(engine, RandomEngine):
        pipeline = engine.pipeline()
        pipeline = pipeline if dtype == engine.dtype else pipeline.to(dtype)
    else:
        from diffusers import ConsisIDPipeline

        pipeline = ConsisIDPipeline.from_pretrained(engine.checkpoint.path, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Theirs:
    """A form of diffusers' pipeline as a maker of videos, stage by stage through its own methods."""

    def __init__(self, engine: ConsisID, person: Identity, steps: int, peer: Peer):
        self.engine, self.person, self.steps = engine, person, steps
        self.pipeline = open_pipeline(engine, engine.dtype)
        peer.place(self.pipeline, engine.device)

    def embeds(self, prompt: str) -> tuple[Any, Any]:
        """Embeddings of a prompt and of the empty one, each [1, T, C]."""
        length = self.engine.variant.transformer.max_text_seq_length
        if isinstance(self.engine, RandomEngine):  # no tokenizer: the ids that the engine would draw
            ids = [self.engine.text_encoder.tokenizer([text]).to(self.engine.device) for text in (prompt, "")]
            one, other = (self.pipeline.text_encoder(x)[0] for x in ids)
            return one, other
        return self.pipeline.encode_prompt(
            prompt=prompt, negative_prompt="", do_classifier_free_guidance=True, max_sequence_length=length,
            device=self.engine.device,
        )  # fmt: skip

    @torch.no_grad()
    def __call__(self, index: int) -> Sample:
        device, marks = self.engine.device, list[Any]()

        def mark(*_: Any) -> dict[str, Any]:
            if device.type == "cuda":
                event = torch.cuda.Event(enable_timing=True)
                event.record()
                marks.append(event)
            else:
                marks.append(time.perf_counter())
            return {}

        def now() -> float:
            wait(device)
            return time.perf_counter()

        start = now()
        prompt, negative = self.embeds(prompt_of(index))
        text = now()
        latents = self.pipeline(**self.arguments(index, prompt, negative, mark)).frames
        denoised = now()
        video = self.pipeline.decode_latents(latents)
        self.pipeline.video_processor.postprocess_video(video=video, output_type="np")
        end = now()
        if device.type == "cuda":
            steps = [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]
        else:
            steps = [b - a for a, b in itertools.pairwise(marks)]
        # The first step has no mark before it; it lies with the preparation in the time that the others leave.
        steps = steps or [denoised - text]
        return Sample(end - start, {"text": text - start, "denoise": denoised - text, "decode": end - denoised}, steps)

    def arguments(self, seed: int, prompt: Any, negative: Any, mark: Callable[..., Any], **more: Any) -> dict[str, Any]:
        """What pipeline() is called with for a video of the engine's size, up to its latents."""
        height, width, frames = self.engine.shape.pixels
        return {
            "image": self.person.image, "prompt_embeds": prompt, "negative_prompt_embeds": negative,
            "id_cond": self.person.id_cond, "id_vit_hidden": list(self.person.id_vit_hidden),
            "height": height, "width": width, "num_frames": frames, "num_inference_steps": self.steps,
            "guidance_scale": 6.0, "generator": torch.Generator().manual_seed(seed), "output_type": "latent",
            "callback_on_step_end": mark,
            "max_sequence_length": self.engine.variant.transformer.max_text_seq_length, **more,
        }  # fmt: skip
