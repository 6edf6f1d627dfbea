"""The tokenizer and the text encoder against transformers' own."""

import pytest
import torch
from transformers import T5EncoderModel, T5Tokenizer

from consisid.engine import ConsisIDError

PROMPTS = [
    "A person walks slowly through fresh snow.",
    "",
    "  two  spaces,\ttabs\nand lines ",
    "Ünïcödé, 日本語 and emoji 🙂 outside the vocabulary",
    "ﬁne ½ ＡＢＣ",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_transformers(tiny, tiny_checkpoint, prompt):
    reference = T5Tokenizer.from_pretrained(tiny_checkpoint / "tokenizer")
    expected = reference([prompt], padding="max_length", max_length=32, truncation=True, return_tensors="pt").input_ids
    assert tiny.text_encoder.tokenizer([prompt]).tolist() == expected.tolist()


def test_long_prompts_are_cut_with_a_warning_that_shows_what(tiny, tiny_checkpoint):
    prompt = "A person walks slowly through fresh snow. " * 6 + "The last words."
    reference = T5Tokenizer.from_pretrained(tiny_checkpoint / "tokenizer")
    expected = reference([prompt], padding="max_length", max_length=32, truncation=True, return_tensors="pt").input_ids
    with pytest.warns(UserWarning, match=r"32 tokens.*The last words\."):
        assert tiny.text_encoder.tokenizer([prompt]).tolist() == expected.tolist()


def test_embeddings_are_those_of_transformers(tiny, tiny_checkpoint):
    reference = T5EncoderModel.from_pretrained(tiny_checkpoint / "text_encoder")
    prompts = ["A man in a dark coat.", "", "Close-up, shallow depth of field."]
    with torch.no_grad():
        expected = reference(tiny.text_encoder.tokenizer(prompts))[0]
        found = tiny.text_encoder(tiny.networks(), prompts)
    assert (found - expected).abs().max() < 1e-5  # float32, other order of the softmax's additions


def test_a_prompt_is_encoded_once(tiny):
    networks = tiny.networks()
    before = networks.calls["text_norm"]
    with torch.no_grad():
        first = tiny.text_encoder(networks, ["one and only", "another"])
        again = tiny.text_encoder(networks, ["another", "one and only"])
    assert networks.calls["text_norm"] == before + 2
    assert torch.equal(first.flip(0), again)


@pytest.mark.parametrize("prompt", ["", "  \n", [], [""], 3, ["fine", None]])
def test_unusable_prompts(tiny, face, prompt):
    with pytest.raises(ConsisIDError, match="prompt"):
        tiny.generate(face, prompt, aligned=True, num_inference_steps=1)
