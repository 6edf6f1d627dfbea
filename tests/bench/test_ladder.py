"""The ladder of step times: rungs in turns, judged by ratios; the arithmetic on numbers, one run at a small size."""

import json

import pytest
import torch

from consisid.bench.core.baselines import EAGER, Theirs
from consisid.bench.core.inputs import identity
from consisid.bench.tools import ablation as ladder
from consisid.bench.tools.profiles import PARTS, watching
from consisid.engine import ConsisID
from consisid.engine.errors import InputError


def test_a_rung_is_judged_by_its_ratio_in_the_same_turn():
    """The machine grows three times slower half way: medians overlap, ratios do not."""
    above = [1.0, 1.1, 1.0, 3.0, 3.1, 3.0]
    first, faster, same = ladder.rungs({"a": above, "b": [0.9 * x for x in above], "c": [0.9 * x for x in above]})
    assert "ratio" not in first
    assert faster["high"] > first["low"]
    assert faster["lower"]
    assert faster["ratio"] == pytest.approx(0.9)
    assert not same["lower"]


def test_everybody_takes_turns_in_another_order():
    asked = []
    makers = {name: lambda index, name=name: asked.append(name) or [1.0, float(index)] for name in "abc"}
    found = ladder.take_turns(makers, 3)
    assert found["a"] == [1.0, 1.5, 2.0]  # the median of what turn 0 to 3 said, without turn 0
    assert [asked[3 * turn] for turn in range(1, 4)] == ["a", "b", "c"]


def test_two_engines_of_one_checkpoint(mini_folder, random_mini, tmp_path, capsys):
    with pytest.raises(InputError, match="differ in dtype, checkpoint"):
        ladder.check_pair(ConsisID.open(mini_folder), random_mini)
    folder = str(mini_folder)
    assert ladder.main([folder, folder, "--output", str(tmp_path), "--steps", "2", "--turns", "2"]) == 0
    found = json.loads((tmp_path / "ladder.json").read_text())
    assert [row["name"] for row in found["rungs"]] == list(found["profile"]) == list(ladder.RUNGS)
    ours = found["profile"]["ours, eager"]
    assert ours["face extractor"] == ours["folding of the face attention"] == 0
    assert all(found["profile"]["ours without hoisting"][part] > 0 for part in PARTS)
    table = capsys.readouterr().out
    assert table == (tmp_path / "ladder.md").read_text()
    assert table.count("| yes |") + table.count("| no |") == 3


def test_parts_of_diffusers_add_up_to_its_forward_pass(random_mini):
    """Every child of the transformer that computes is in a part."""
    theirs = Theirs(random_mini, identity(random_mini.variant), 2, EAGER)
    named = {child for _, children in PARTS.values() for child in children}
    idle = {"time_proj", "embedding_dropout"}  # sines of one number; nothing
    assert {name for name, _ in theirs.pipeline.transformer.named_children()} - idle == named
    with torch.no_grad(), watching(theirs.pipeline.transformer) as seconds:
        theirs.denoise(0, *theirs.embeds("A man."))
    assert set(seconds) == {part for part, (_, children) in PARTS.items() if children}
