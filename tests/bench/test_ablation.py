"""What a technique gains is judged by ratios in the same turn; makers take turns in another order each time."""

import pytest
import torch

from consisid.bench.core.ablation import gains
from consisid.bench.core.samples import Resident, Sample, alternate


def of(seconds):
    return [Sample(1.0, {}, [x]) for x in seconds]


def test_a_technique_is_judged_by_its_ratio_in_the_same_turn():
    """The machine grows three times slower half way: medians overlap, ratios do not."""
    above = [1.0, 1.1, 1.0, 3.0, 3.1, 3.0]
    faster = [0.9 * x for x in above]
    found = {"diffusers": of(above), "ours without hoisting": of(faster), "ours": of(faster)}
    first, second, third = gains(found)
    assert "ratio" not in first
    assert second["ratio"] == second["ratio_high"] == pytest.approx(0.9)
    assert second["gain"] == pytest.approx(0.1 * 2.05)
    assert third["ratio"] == third["ratio_low"] == 1
    assert third["gain"] == 0


def test_everybody_takes_turns_in_another_order():
    asked = []

    def maker(name):
        return lambda index: asked.append((name, index)) or Sample(float(index), {}, [])

    found = alternate({name: maker(name) for name in "abc"}, 3, Resident(torch.device("cpu")))
    assert [sample.total for sample in found["a"]] == [1, 2, 3]  # what was made first does not count
    assert [asked[3 * turn] for turn in range(1, 4)] == [("a", 1), ("b", 2), ("c", 3)]
