"""Every scheduler that diffusers exports: the same latents, or refused by name with the reason."""

import diffusers
import pytest
import torch
from support.reference import LATENTS

from consisid.engine.errors import InputError
from consisid.engine.sampling import check_scheduler

CLASSES = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and issubclass(getattr(diffusers, name), diffusers.SchedulerMixin)
)
# Those that can denoise latents of this shape; whoever is not among them has to be refused.
SUITED = {
    "CMStochasticIterativeScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDIMInverseScheduler",
    "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "IPNDMScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler",
    "UniPCMultistepScheduler",
}  # fmt: skip


def of(name, config):
    """A scheduler made from another's settings; None where its class cannot be."""
    try:
        return getattr(diffusers, name).from_config(config)
    except (TypeError, ValueError, ImportError):
        return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CLASSES)
def test_latents_are_those_of_diffusers_or_it_is_refused(ours, theirs, arguments, name):
    scheduler = of(name, ours.scheduler.config)
    if scheduler is None:
        assert name not in SUITED
        return
    ours.scheduler = scheduler
    if name not in SUITED:
        said = rf"{name} cannot make this video \(.+\); give a scheduler|scheduler={name}.* is no scheduler"
        with pytest.raises(InputError, match=said):
            ours(**arguments(num_inference_steps=4))
        return
    theirs.scheduler = of(name, theirs.scheduler.config)
    found, expected = (p(**arguments(num_inference_steps=4)).frames for p in (ours, theirs))
    # Some go through latents of a thousand times the size of what comes out, which rounds that much.
    assert (found - expected).abs().max() < LATENTS * max(1.0, expected.abs().max())


def test_timesteps_and_sigmas_of_the_caller(shallow):
    from support.people import random_identity

    person = random_identity(shallow.variant)
    before = shallow.scheduler
    try:
        shallow.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(before.config)
        shallow.scheduler.set_timesteps(3)
        own = shallow.scheduler.timesteps.tolist()
        make = lambda **more: shallow.generate(person, "Snow.", seed=1, num_frames=9, output_type="latent", **more)  # noqa: E731
        assert make(timesteps=own).latents.equal(make(num_inference_steps=3).latents)
        assert len(make(timesteps=[900, 400]).stats.steps) == 2
        with pytest.raises(InputError, match="Both timesteps and sigmas"):
            make(timesteps=[900], sigmas=[1.0])
        with pytest.raises(InputError, match="is no list of numbers"):
            make(timesteps=[])
        shallow.scheduler = diffusers.EulerDiscreteScheduler.from_config(before.config)
        shallow.scheduler.set_timesteps(3)
        made = make(sigmas=shallow.scheduler.sigmas.tolist())  # diffusers' own end with the 0 behind the last step
        assert len(made.stats.steps) == 3
        assert not make(sigmas=[shallow.scheduler.sigmas[0].item(), 2.0, 0.5, 0.0]).latents.equal(made.latents)
        shallow.scheduler = before
        with pytest.raises(InputError, match="takes no timesteps of its caller's"):
            make(timesteps=[900, 400])
    finally:
        shallow.scheduler = before


def test_the_trial_leaves_a_scheduler_as_it_was():
    scheduler = diffusers.DPMSolverMultistepScheduler()
    before = {name: value for name, value in vars(scheduler).items() if not isinstance(value, torch.Tensor)}
    check_scheduler(scheduler, 5, {})
    after = {name: value for name, value in vars(scheduler).items() if not isinstance(value, torch.Tensor)}
    assert after == before
    with pytest.raises(InputError, match="is no scheduler: it has no step"):
        check_scheduler("DDIM", 5, {})
