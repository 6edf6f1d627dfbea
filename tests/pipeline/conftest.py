"""diffusers' pipeline and ours over the same modules, and the arguments of a small call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.components import TOKENS, WIDTH, small_components, small_face
from support.people import random_face

from consisid.engine import ConsisIDPipeline


@pytest.fixture
def components(tiny_checkpoint) -> dict[str, Any]:
    return small_components(tiny_checkpoint / "tokenizer")


@pytest.fixture
def theirs(components):
    from diffusers import ConsisIDPipeline as Theirs

    return quiet(Theirs(**components))


@pytest.fixture
def ours(components):
    return quiet(ConsisIDPipeline(**components))


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def arguments() -> Callable[..., dict[str, Any]]:
    """The arguments of a call that gives latents, with others in their place; each with a new generator."""
    embeds, negative = torch.randn(2, 1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(3)).unbind(0)

    def make(**others: Any) -> dict[str, Any]:
        given = {
            "image": random_face(0), "prompt_embeds": embeds, "negative_prompt_embeds": negative, "height": 32,
            "width": 48, "num_frames": 9, "num_inference_steps": 3, "max_sequence_length": TOKENS,
            "output_type": "latent", "generator": torch.Generator().manual_seed(5), **small_face(),
        }  # fmt: skip
        if "prompt" in others:
            given["prompt_embeds"] = given["negative_prompt_embeds"] = None
        return given | others

    return make
