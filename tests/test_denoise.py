"""The weight of the prompt at each step, and what a step holds."""

import math
import weakref

import pytest
from support.people import random_identity

from consisid.engine.denoise import guidance_weight
from consisid.engine.runtime.executor import GraphExecutor


def test_a_fixed_weight_is_the_callers():
    assert guidance_weight(6.0, False, 3, 700.0, 50) == 6.0


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_the_weight_that_was_meant_rises_with_the_steps(steps):
    """1 at the first step, and at step i of n what the cosine has at i / n: the full weight is never reached."""
    weights = [guidance_weight(5.0, "step", step, 999.0 - step, steps) for step in range(steps)]
    assert weights[0] == 1.0
    assert weights == [1 + 5.0 * (1 - math.cos(math.pi * (step / steps) ** 5)) / 2 for step in range(steps)]
    assert weights == sorted(weights)


def test_diffusers_formula_puts_the_timestep_where_the_step_belongs():
    for timestep in (999.0, 759.0, 19.0):
        expected = 1 + 6.0 * (1 - math.cos(math.pi * ((50 - timestep) / 50) ** 5.0)) / 2
        assert guidance_weight(6.0, True, 7, timestep, 50) == pytest.approx(expected, abs=1e-12)


def test_a_hidden_state_lives_until_the_next_is_made(tiny, monkeypatch):
    """When a block ends there is what it was given, and nothing of the embedding or of earlier blocks."""
    made, alive, one = [], [], GraphExecutor.one

    def watched(self, name, *inputs, layer=0):
        found = one(self, name, *inputs, layer=layer)
        if name in ("embed", "block", "face", "last_block"):
            alive.append(sum(state() is not None for state in made))
            made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(GraphExecutor, "one", watched)
    tiny.generate(random_identity(tiny.variant), "A man.", seed=1, num_inference_steps=2, output_type="latent")
    assert len(alive) == 2 * (1 + tiny.variant.transformer.num_layers + tiny.variant.transformer.num_cross_attn)
    assert max(alive) == 1
