"""diffusers' ConsisIDPipeline in the forms in which people run it, as rows of a table."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from consisid.engine import ConsisID, Identity
from consisid.engine.checkpoint.random_weights import RandomWeights as RandomCheckpoint
from consisid.engine.errors import ConsisIDError

from . import reference
from .samples import Sample, prompt_of
from .timing import wait
from .weights import RandomWeights

Place = Callable[[Any, torch.device], None]
GUIDANCE = 6.0


class PeerError(ConsisIDError):
    """What diffusers raised: its kind and first line. It says something about a peer, nothing about this engine."""


@contextmanager
def answering() -> Iterator[None]:
    """Around calls of diffusers.

    Raises:
        PeerError: whatever they raise, but for a missing package or memory.
    """
    try:
        yield
    except (ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise PeerError(f"{type(error).__name__}: {first[:200]}") from error


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
    """With diffusers' own tile; where a sixth of its height or a fifth of its width is no whole latent pixel, as at
    TINY, diffusers fails, and gets the next one that is."""

    def put(pipeline: Any, device: torch.device) -> None:
        sliced(place)(pipeline, device)
        vae = pipeline.vae
        vae.enable_tiling()
        height, width, ratio = vae.tile_sample_min_height, vae.tile_sample_min_width, pipeline.vae_scale_factor_spatial
        down, right = 6 * ratio, 5 * ratio
        vae.enable_tiling(max(down, height - height % down), max(right, width - width % right))

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
    """diffusers' pipeline with the weights of an engine: from its checkpoint, or the same random ones.

    Raises:
        PeerError: diffusers does not open it.
    """
    from diffusers import ConsisIDPipeline

    with answering():
        if isinstance(engine.checkpoint, RandomCheckpoint):
            pipeline = ConsisIDPipeline(**_random_parts(engine, engine.checkpoint, dtype))
        else:
            pipeline = ConsisIDPipeline.from_pretrained(engine.checkpoint.path, torch_dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _random_parts(engine: ConsisID, checkpoint: RandomCheckpoint, dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import CogVideoXDPMScheduler
    from transformers import T5Tokenizer

    weights = RandomWeights(engine.variant, engine.shape, engine.device, dtype, checkpoint.tensors.seed)
    return {
        "transformer": reference.transformer(weights),
        "vae": reference.vae(weights),
        "text_encoder": reference.text_encoder(weights),
        "tokenizer": T5Tokenizer.from_pretrained(checkpoint.path / "tokenizer"),
        "scheduler": CogVideoXDPMScheduler.from_pretrained(checkpoint.path / "scheduler"),
    }


def arguments(engine: ConsisID, person: Identity, steps: int, seed: int, **more: Any) -> dict[str, Any]:
    """What diffusers' pipeline is called with for a video of the engine's size, up to its latents."""
    height, width, frames = engine.shape.pixels
    return {
        "image": person.image, "id_cond": person.id_cond, "id_vit_hidden": list(person.id_vit_hidden),
        "height": height, "width": width, "num_frames": frames, "num_inference_steps": steps,
        "guidance_scale": GUIDANCE, "generator": torch.Generator().manual_seed(seed), "output_type": "latent",
        "max_sequence_length": engine.variant.transformer.max_text_seq_length, **more,
    }  # fmt: skip


class Theirs:
    """A form of diffusers' pipeline as a maker of videos, stage by stage through its own methods.

    Raises:
        PeerError: diffusers does not open, place or run it.
    """

    def __init__(self, engine: ConsisID, person: Identity, steps: int, peer: Peer):
        self.engine, self.person, self.steps = engine, person, steps
        self.pipeline = open_pipeline(engine, engine.dtype)
        with answering():
            peer.place(self.pipeline, engine.device)

    def embeds(self, prompt: str) -> tuple[Any, Any]:
        """Embeddings of a prompt and of the empty one, each [1, T, C]."""
        return self.pipeline.encode_prompt(
            prompt=prompt, negative_prompt="", do_classifier_free_guidance=True, device=self.engine.device,
            max_sequence_length=self.engine.variant.transformer.max_text_seq_length,
        )  # fmt: skip

    def now(self) -> float:
        wait(self.engine.device)
        return time.perf_counter()

    def denoise(self, index: int, prompt: Any, negative: Any) -> tuple[Any, list[float]]:
        """Latents, and seconds of each step but the first, which has no mark before it."""
        marks, gpu = list[Any](), self.engine.device.type == "cuda"

        def mark(*_: Any) -> dict[str, Any]:
            marks.append(torch.cuda.Event(enable_timing=True) if gpu else time.perf_counter())
            if gpu:
                marks[-1].record()
            return {}

        given = {"prompt_embeds": prompt, "negative_prompt_embeds": negative, "callback_on_step_end": mark}
        latents = self.pipeline(**arguments(self.engine, self.person, self.steps, index, **given)).frames
        wait(self.engine.device)
        pairs = itertools.pairwise(marks)
        return latents, [a.elapsed_time(b) / 1000 if gpu else b - a for a, b in pairs]

    @torch.no_grad()
    def __call__(self, index: int) -> Sample:
        with answering():
            start = self.now()
            prompt, negative = self.embeds(prompt_of(index))
            text = self.now()
            latents, steps = self.denoise(index, prompt, negative)
            denoised = self.now()
            video = self.pipeline.decode_latents(latents)
            self.pipeline.video_processor.postprocess_video(video=video, output_type="np")
            end = self.now()
        stages = {"text": text - start, "denoise": denoised - text, "decode": end - denoised}
        return Sample(end - start, stages, steps)
