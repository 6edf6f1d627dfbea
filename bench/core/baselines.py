"""diffusers' ConsisIDPipeline in the forms in which people run it, as rows of a table."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from consisid.engine import ConsisID, Identity
from consisid.engine.checkpoint.random_weights import RandomWeights as RandomCheckpoint
from consisid.engine.errors import ConsisIDError
from consisid.engine.util.progress import without_bars

from .inputs import GUIDANCE, prompt_of
from .samples import Sample
from .tables import first_line
from .timing import between, mark, now, wait
from .weights import RandomWeights, diffusers_text_encoder, diffusers_transformer, diffusers_vae


class BaselineError(ConsisIDError):
    """What diffusers raised: its kind and first line. It says something about diffusers, nothing about this engine."""


class NoBaselineError(BaselineError):
    """diffusers has nothing to compare with."""


@contextmanager
def answering() -> Iterator[None]:
    """Around calls of diffusers.

    Raises:
        BaselineError: whatever they raise, but for a missing package or memory.
    """
    try:
        yield
    except (ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise BaselineError(f"{type(error).__name__}: {first_line(error)}") from error


def resident(pipeline: Any, device: torch.device) -> None:
    pipeline.to(device)


def compiled(pipeline: Any, device: torch.device) -> None:
    """Each block by itself: they are alike, so one is compiled and the others reuse it."""
    pipeline.to(device)
    for block in pipeline.transformer.transformer_blocks:
        block.compile(dynamic=False)


def group_offload(pipeline: Any, device: torch.device) -> None:
    from diffusers.hooks import apply_group_offloading

    for module in (pipeline.transformer, pipeline.text_encoder):
        apply_group_offloading(
            module, onload_device=device, offload_device=torch.device("cpu"), offload_type="block_level",
            num_blocks_per_group=1, use_stream=True,
        )  # fmt: skip
    pipeline.vae.to(device)


def tile(vae: Any, ratio: int) -> None:
    """diffusers' own tile; where a sixth of its height or a fifth of its width is no whole latent pixel, as at TINY,
    diffusers fails, and gets the next one that is."""
    vae.enable_tiling()
    down, right = 6 * ratio, 5 * ratio
    height, width = vae.tile_sample_min_height, vae.tile_sample_min_width
    vae.enable_tiling(max(down, height - height % down), max(right, width - width % right))


@dataclass(frozen=True)
class Baseline:
    """A form of diffusers' pipeline.

    reference_gb: (allocated, reserved) that ConsisID's authors state for it, in GB.
    gpu: it moves weights to a GPU and back, so it needs one.
    slow: left out unless asked for.
    slicing, tiling: of its decoder.
    """

    name: str
    place: Callable[[Any, torch.device], None]
    reference_gb: tuple[float, float] | None = None
    gpu: bool = False
    slow: bool = False
    slicing: bool = False
    tiling: bool = False

    def prepare(self, pipeline: Any, device: torch.device) -> None:
        """Put a pipeline where it runs."""
        self.place(pipeline, device)
        if self.slicing:
            pipeline.vae.enable_slicing()
        if self.tiling:
            tile(pipeline.vae, pipeline.vae_scale_factor_spatial)


def offload(kind: str) -> Callable[[Any, torch.device], None]:
    """By one of diffusers' own methods: "model" or "sequential"."""
    return lambda pipeline, device: getattr(pipeline, f"enable_{kind}_cpu_offload")(device=device)


EAGER = Baseline("diffusers", resident, (37, 44))
SEQUENTIAL = "diffusers, sequential offload"
BASELINES = (
    EAGER,
    Baseline("diffusers, blocks compiled", compiled, slow=True),
    Baseline("diffusers, group offload on a stream", group_offload, gpu=True),
    Baseline("diffusers, model offload", offload("model"), (22, 25), gpu=True),
    Baseline(SEQUENTIAL, offload("sequential"), (16, 22), gpu=True),
    Baseline(f"{SEQUENTIAL}, slicing", offload("sequential"), (16, 22), gpu=True, slicing=True),
    Baseline(f"{SEQUENTIAL}, slicing, tiling", offload("sequential"), (5, 7), gpu=True, slicing=True, tiling=True),
    Baseline("diffusers, slicing, tiling", resident, slicing=True, tiling=True),
)


def open_pipeline(engine: ConsisID, dtype: torch.dtype) -> Any:
    """diffusers' pipeline with the weights of an engine: from its checkpoint, or the same random ones.

    Raises:
        BaselineError: diffusers does not open it; NoBaselineError: it has no class for the model.
    """
    from diffusers import ConsisIDPipeline

    from consisid.engine.checkpoint.transformer_module import needs_own_module

    if needs_own_module(engine.variant.to_dict()["transformer"]):
        raise NoBaselineError(f"diffusers has no class for the transformer of the {engine.variant.name} model")
    with answering(), without_bars():
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
        "transformer": diffusers_transformer(weights),
        "vae": diffusers_vae(weights),
        "text_encoder": diffusers_text_encoder(weights),
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


class Diffusers:
    """A form of diffusers' pipeline as a maker of videos, stage by stage through its own methods.

    Args:
        frames: whether it decodes, or ends at the latents.

    Raises:
        BaselineError: diffusers does not open, place or run it.
    """

    def __init__(
        self, engine: ConsisID, person: Identity, steps: int, form: Baseline = EAGER, *, frames: bool = True
    ):  # fmt: skip
        self.engine, self.person, self.steps, self.frames = engine, person, steps, frames
        self.pipeline = open_pipeline(engine, engine.dtype)
        with answering():
            form.prepare(self.pipeline, engine.device)

    def embeds(self, prompt: str) -> tuple[Any, Any]:
        """Embeddings of a prompt and of the empty one, each [1, T, C]."""
        return self.pipeline.encode_prompt(
            prompt=prompt, negative_prompt="", do_classifier_free_guidance=True, device=self.engine.device,
            max_sequence_length=self.engine.variant.transformer.max_text_seq_length,
        )  # fmt: skip

    def denoise(self, index: int, prompt: Any, negative: Any) -> tuple[Any, list[float]]:
        """Latents, and seconds of each step but the first, which has no mark before it."""
        marks: list[Any] = []

        def keep(*_: Any) -> dict[str, Any]:
            marks.append(mark(self.engine.device))
            return {}

        given = {"prompt_embeds": prompt, "negative_prompt_embeds": negative, "callback_on_step_end": keep}
        latents = self.pipeline(**arguments(self.engine, self.person, self.steps, index, **given)).frames
        wait(self.engine.device)
        return latents, [between(*pair) for pair in itertools.pairwise(marks)]

    @torch.no_grad()
    def __call__(self, index: int) -> Sample:
        device = self.engine.device
        with answering():
            start = now(device)
            prompt, negative = self.embeds(prompt_of(index))
            text = now(device)
            latents, steps = self.denoise(index, prompt, negative)
            denoised = now(device)
            stages = {"text": text - start, "denoise": denoised - text}
            if self.frames:
                video = self.pipeline.decode_latents(latents)
                self.pipeline.video_processor.postprocess_video(video=video, output_type="np")
                stages["decode"] = now(device) - denoised
        return Sample(sum(stages.values()), stages, steps)
