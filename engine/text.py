"""prompt -> text embeddings: the tokenizer, and the T5 encoder layer by layer."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint.sentencepiece_json import BYTES, read_tokenizer_json
from .errors import CheckpointError, InputError, shown
from .runtime.executor import GraphExecutor
from .util.parsing import Unreadable, read_bounded, shorten

PAD, END = 0, 1


class Tokenizer:
    """T5's SentencePiece tokenizer (Kudo and Richardson, arXiv:1808.06226), without transformers.

    Special tokens written out in a prompt, such as </s>, are read as text; transformers would obey them.

    Args:
        model: the checkpoint's tokenizer/spiece.model, or the tokenizer.json that transformers 5 writes in its place.
        max_length: tokens per prompt, the end mark included.

    Attributes:
        size: of the vocabulary.

    Raises:
        CheckpointError: the file is missing, damaged, or of another tokenizer than T5's.
    """

    def __init__(self, model: Path, max_length: int):
        import sentencepiece

        self.max_length = max_length
        try:
            data = read_tokenizer_json(model) if model.suffix == ".json" else read_bounded(model, BYTES)
            if not data:
                raise Unreadable("it is empty")
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
            self.size: int = self._model.vocab_size()
            for piece, number in (("<pad>", PAD), ("</s>", END)):
                if self._model.id_to_piece(number) != piece:
                    raise Unreadable(f"it is not T5's: piece {number} is not {piece}")
            self._model.encode("A person.")
        except FileNotFoundError:
            raise CheckpointError(f"The tokenizer {model} is missing; the checkpoint is incomplete.") from None
        except (RuntimeError, IndexError, ValueError) as error:  # SentencePiece has no class of its own
            raise CheckpointError(
                f"The tokenizer {model} cannot be read ({shorten(error)}); download it again."
            ) from None

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, int64 [B, max_length], padded. What does not fit is cut, with a warning that shows it."""
        rows = []
        for prompt in prompts:
            ids = self._model.encode(prompt)
            if len(ids) >= self.max_length:
                warn_of_cut(self.max_length, self._model.decode(ids[self.max_length - 1 :]))
                ids = ids[: self.max_length - 1]
            rows.append([*ids, END] + [PAD] * (self.max_length - 1 - len(ids)))
        return torch.tensor(rows, dtype=torch.int64)


def warn_of_cut(length: int, lost: str) -> None:
    """Say what of a prompt does not fit into `length` tokens."""
    warnings.warn(
        f"The prompt is longer than {length} tokens; this end of it has no effect: {shown(lost)}", stacklevel=3
    )


def check_prompt(prompt: object, may_be_empty: bool = False) -> list[str]:
    """The prompts as a list.

    Raises:
        InputError: a prompt that is no text, or empty where that may not be.
    """
    prompts: list[str] = []
    for text in prompt if isinstance(prompt, list | tuple) else [prompt]:
        if not isinstance(text, str):
            raise InputError(f"A prompt has to be a text, this one is {type(text).__name__}.")
        if not (text.strip() or may_be_empty):
            raise InputError("The prompt is empty; say what the person does and where.")
        check_unicode("prompt", text)
        prompts.append(text)
    if not prompts:
        raise InputError("The list of prompts is empty; give at least one.")
    return prompts


def check_unicode(name: str, text: str) -> None:
    """Raises InputError for a text that is none in Unicode: a command line that is not in UTF-8 gives such ones."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = f"{shown(text[error.start])} at character {error.start + 1}"
        raise InputError(f"The {name} is not valid Unicode, it has {wrong}; write it in UTF-8.") from None


class TextEncoder:
    """Prompts -> text embeddings; the last few are kept, on the host, so that a prompt is encoded once.

    Each prompt runs by itself, layer by layer beside the others: what it becomes does not depend on its neighbours,
    and a layer's weights are needed once for all of them.
    """

    KEPT = 16

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._kept: dict[str, Tensor] = {}

    def __call__(self, networks: GraphExecutor, prompts: Sequence[str]) -> Tensor:
        """Text embeddings [B, T, d_model], padding included, as the reference has them."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        states = [networks.many("text_embed", self.tokenizer([prompt]).to(networks.device)) for prompt in new]
        hidden = networks.text_layers([(state[0], state[1]) for state in states])
        made = {prompt: networks.one("text_norm", x).cpu() for prompt, x in zip(new, hidden, strict=True)}
        found = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept} | made
        self._kept = dict(list((self._kept | found).items())[-self.KEPT :])
        return torch.cat([found[prompt] for prompt in prompts]).to(networks.device)
