"""Schedulers as diffusers opens them, without importing what it imports for it."""

import json
import subprocess
import sys

import diffusers
import pytest
import torch

from consisid.engine.errors import CheckpointError
from consisid.engine.sampling import Stepper, load_scheduler

CLASSES = ("CogVideoXDPMScheduler", "CogVideoXDDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
LOAD = "import sys; from pathlib import Path; from consisid.engine.sampling import load_scheduler as load; "


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("options", [{}, {"beta_end": 0.02, "solver_order": 3, "snr_shift_scale": 1.0, "other": 1}])
def test_a_scheduler_is_the_one_of_diffusers(name, options, tmp_path):
    """And so is one of another class that is made from it."""
    cls = getattr(diffusers, name)
    cls().save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    ours, theirs = load_scheduler(tmp_path), cls.from_pretrained(tmp_path)
    assert type(ours) is cls
    assert dict(ours.config) == dict(theirs.config)
    for other in (getattr(diffusers, name) for name in CLASSES):
        made = [other.from_config(scheduler.config) for scheduler in (ours, theirs)]
        assert dict(made[0].config) == dict(made[1].config)
        for scheduler in made:
            scheduler.set_timesteps(5)
        assert made[0].timesteps.equal(made[1].timesteps)
        assert made[0].alphas_cumprod.equal(made[1].alphas_cumprod)


def test_loading_one_imports_no_other(tmp_path):
    diffusers.CogVideoXDPMScheduler().save_pretrained(tmp_path)
    others = "('scipy', 'diffusers.schedulers.scheduling_euler')"
    command = LOAD + f"load(Path(sys.argv[1])); print(*[m for m in sys.modules if m.startswith({others})])"
    given = [sys.executable, "-c", command, str(tmp_path)]
    result = subprocess.run(given, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_eta_and_the_generator_reach_a_scheduler_that_takes_them():
    """DDIM's step, which adds noise of that size."""
    config = diffusers.DDIMScheduler().config
    ours, theirs = (diffusers.DDIMScheduler.from_config(config) for _ in range(2))
    stepper = Stepper(ours, 5, 0.7, torch.Generator().manual_seed(3))
    theirs.set_timesteps(5)
    output, latents = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    options = {"eta": 0.7, "generator": torch.Generator().manual_seed(3)}
    right = theirs.step(output, theirs.timesteps[1], latents, **options).prev_sample
    assert torch.equal(stepper.step(output, 1, latents), right)


def test_what_is_none_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is missing"):
        load_scheduler(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "NoScheduler"}')
    with pytest.raises(CheckpointError, match="'NoScheduler', which diffusers does not have"):
        load_scheduler(tmp_path)
