"""The templates of docs/prompts.md fit into what the model reads, and each says what the page asks for."""

import re
from pathlib import Path

import pytest

from consisid.engine.variants import PREVIEW

PAGE = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text()
TEMPLATES = dict(re.findall(r"^## ([^\n]+)\n\n```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
PER_WORD = 2  # tokens; English takes fewer, and T5's vocabulary lies in the checkpoint alone


def test_there_are_some():
    assert len(TEMPLATES) >= 4


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_long_and_fits(name):
    words = TEMPLATES[name].split()
    assert len(words) > 60
    assert PER_WORD * len(words) < PREVIEW.transformer.max_text_seq_length


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_says_what_to_fill_in_and_how_it_is_seen(name):
    text = TEMPLATES[name]
    assert len(re.findall(r"\{[^{}]+\}", text)) >= 3
    assert text.count("{") == text.count("}")
    assert text.startswith("The video ")
    assert re.search("camera", text)
    assert re.search("light", text)
