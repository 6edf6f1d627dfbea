"""The two files of one tokenizer: SentencePiece's model, and the JSON that transformers 5 writes in its place."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from transformers import T5Tokenizer

from consisid.engine.errors import CheckpointError
from consisid.engine.text import Tokenizer

LENGTH = 48
# Special tokens, characters that the normaliser joins, replaces or removes, white space of every kind.
WORDS = (
    "a", "person", "walks", "snow", "</s>", "<extra_id_3>", "<pad>", "<unk>", "▁", "\t", "\n", "", "½", "ﬁne", "ＡＢＣ",
    "日本語", "é", "e\u0301", "🙂", "\x00", "\u200b", "\xa0", "--", "1980",
)  # fmt: skip
PROMPTS = [
    "A person walks slowly through fresh snow.",
    "",
    "  two  spaces,\ttabs\nand lines ",
    "Ünïcödé, 日本語 and 🙂",
    "ﬁne ½ ＡＢＣ",
    "the end </s> is text, and so are <extra_id_0>, <pad> and <unk>",
]


@pytest.fixture(scope="module")
def written(tiny_checkpoint: Path, tmp_path_factory) -> Path:
    """tokenizer.json as save_pretrained writes it today; there is no spiece.model beside it."""
    folder = tmp_path_factory.mktemp("saved")
    T5Tokenizer.from_pretrained(tiny_checkpoint / "tokenizer").save_pretrained(folder)
    assert not (folder / "spiece.model").exists()
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def both(tiny_checkpoint, written):
    return Tokenizer(tiny_checkpoint / "tokenizer" / "spiece.model", LENGTH), Tokenizer(written, LENGTH)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_both_files_give_the_same_ids(both, prompt):
    model, other = both
    assert torch.equal(model([prompt]), other([prompt]))


@pytest.mark.filterwarnings("ignore:The prompt is longer")
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=12))
@settings(deadline=None, max_examples=examples(300))
def test_both_files_give_the_same_ids_for_every_text(both, words):
    """Special tokens written out, characters that the normaliser changes, all of Unicode."""
    text = " ".join(words)
    assert both[0]([text]).tolist() == both[1]([text]).tolist()


@pytest.mark.parametrize("prompt", PROMPTS[:-1])
def test_the_ids_are_those_of_transformers(both, written, prompt):
    reference = T5Tokenizer.from_pretrained(written.parent)
    options = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
    assert both[1]([prompt]).tolist() == [reference(prompt, **options).input_ids]


def without(*path):
    def change(values):
        for key in path[:-1]:
            values = values[key]
        del values[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("model"), "model: Input should be an object"),
        (lambda v: v["model"].update(type="BPE"), "type"),
        (lambda v: v["model"].update(unk_id=10**6), "number 1000000 for what is unknown"),
        (lambda v: v["model"].update(vocab=[]), "0 pieces"),
        (lambda v: v["model"]["vocab"].__setitem__(5, ["x", "high"]), "vocab.5.1"),
        (lambda v: v["model"]["vocab"].reverse(), "not T5's"),
        (lambda v: v["normalizer"].update(precompiled_charsmap="%%"), "normalizer is damaged"),
        (lambda v: v.update(added_tokens=[3]), "added_tokens.0: Input should be an object"),
    ],
)
def test_a_damaged_json_is_refused(written, tmp_path, change, reason):
    values = json.loads(written.read_text())
    change(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=rf"tokenizer.json cannot be read \(.*({reason}).*\); download it again"):
        Tokenizer(tmp_path / "tokenizer.json", LENGTH)


@pytest.mark.parametrize("content", [b"", b"no model", b"\xff" * 999, b"version https://git-lfs.github.com/spec/v1\n"])
@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json"])
def test_what_is_no_tokenizer_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer(tmp_path / name, LENGTH)
