"""prompt -> text embeddings: the tokenizer, and the T5 encoder layer by layer."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError, InputError
from .runtime import Networks

PAD, END = 0, 1


class Tokenizer:
    """T5's SentencePiece tokenizer (Kudo and Richardson, arXiv:1808.06226), without transformers.

    Args:
        model: the checkpoint's tokenizer/spiece.model.
        max_length: tokens per prompt, the end mark included.
    """

    def __init__(self, model: Path, max_length: int):
        import sentencepiece

        if not model.is_file():
            raise CheckpointError(f"The tokenizer {model} is missing; the checkpoint is incomplete.")
        self.max_length = max_length
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, int64 [B, max_length], padded. What does not fit is cut, with a warning that shows it."""
        rows = []
        for prompt in prompts:
            ids = self._model.encode(prompt)
            if len(ids) >= self.max_length:
                lost = self._model.decode(ids[self.max_length - 1 :])
                warnings.warn(
                    f"The prompt is longer than {self.max_length} tokens; this end of it has no effect: {lost!r}",
                    stacklevel=2,
                )
                ids = ids[: self.max_length - 1]
            rows.append([*ids, END] + [PAD] * (self.max_length - 1 - len(ids)))
        return torch.tensor(rows, dtype=torch.int64)


def check_prompt(prompt: str | Sequence[str]) -> list[str]:
    """The prompts as a list.

    Raises:
        InputError: a prompt that is no text, or empty.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    for text in prompts:
        if not isinstance(text, str):
            raise InputError(f"A prompt has to be a text, this one is {type(text).__name__}.")
        if not text.strip():
            raise InputError("The prompt is empty; say what the person does and where.")
    if not prompts:
        raise InputError("The list of prompts is empty; give at least one.")
    return prompts


def encode(networks: Networks, tokenizer: Tokenizer, prompts: Sequence[str]) -> Tensor:
    """Text embeddings [B, T, d_model] of prompts, padding included, as the reference has them."""
    hidden, bias = networks.many("text_embed", tokenizer(prompts).to(networks.device))
    for layer in range(networks.variant.text.num_layers):
        hidden = networks.one("text_layer", hidden, bias, layer=layer)
    return networks.one("text_norm", hidden)
