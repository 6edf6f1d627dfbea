"""The SentencePiece model in a tokenizer.json, which transformers 5 writes instead of spiece.model."""

import base64
import binascii
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from typing_extensions import TypedDict

from ..util.parsing import MIB, Unreadable, read_object, validate

BYTES = 64 * MIB
PIECES = 2**20
Score = Annotated[float, Ge(-1e6), Le(1e6)]
NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # types of pieces in sentencepiece_model.proto


class AddedToken(TypedDict):
    """A token that is no piece of text: padding, the end, T5's sentinels."""

    id: Annotated[int, Ge(0), Le(2 * PIECES)]
    content: str


class Unigram(TypedDict):
    """A unigram model: pieces with the logarithms of their probabilities."""

    type: Literal["Unigram"]
    unk_id: Annotated[int, Ge(0), Le(PIECES)]
    vocab: list[tuple[str, Score]]


def read_tokenizer_json(file: Path) -> bytes:
    """A serialised SentencePiece model with the ids of a tokenizer.json: its pieces and its normaliser.

    So both files go through one library, and give the same ids for every text. Added tokens are control pieces: written
    out in a text they are text, as in the model that the JSON was made from.

    Raises:
        FileNotFoundError: there is none.
        Unreadable: it is damaged, or no unigram model.
    """
    from sentencepiece import sentencepiece_model_pb2

    values = read_object(file, BYTES)
    model: Unigram = validate(Unigram, values.get("model"), "model")
    added: list[AddedToken] = validate(list[AddedToken], values.get("added_tokens") or [], "added_tokens")
    if not 0 < len(model["vocab"]) <= PIECES or model["unk_id"] >= len(model["vocab"]):
        raise Unreadable(f"it has {len(model['vocab'])} pieces, and number {model['unk_id']} for what is unknown")
    control = {(token["id"], token["content"]) for token in added}
    proto = sentencepiece_model_pb2.ModelProto()
    for number, (piece, score) in enumerate(model["vocab"]):
        kind = CONTROL if (number, piece) in control else NORMAL
        proto.pieces.add(piece=piece, score=score, type=UNKNOWN if number == model["unk_id"] else kind)
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    proto.trainer_spec.unk_id = model["unk_id"]
    try:
        proto.normalizer_spec.precompiled_charsmap = base64.b64decode(
            _charsmap(values.get("normalizer")), validate=True
        )
    except binascii.Error as error:
        raise Unreadable(f"its normalizer is damaged: {error}") from None
    return proto.SerializeToString()


def _charsmap(normalizer: Any) -> str:
    """The table of replaced characters in a normalizer, or in one of a sequence of them; "" where there is none."""
    if not isinstance(normalizer, dict):
        return ""
    if normalizer.get("type") == "Precompiled":
        found: str = validate(str, normalizer.get("precompiled_charsmap"), "precompiled_charsmap")
        return found
    steps = normalizer.get("normalizers")
    return next(filter(None, map(_charsmap, steps)), "") if isinstance(steps, list) else ""
