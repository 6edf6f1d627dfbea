"""The weight of the prompt at each step."""

import math

import pytest

from consisid.engine.denoise import guidance_weight


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
