"""What a call shows of itself while it runs and afterwards, alone, nested and from threads."""

import threading

import pytest
import torch

from consisid.engine import ConsisIDPipeline


def test_attributes_of_diffusers(ours, theirs, arguments):
    for pipeline in (ours, theirs):
        with pytest.raises(AttributeError):
            _ = pipeline.guidance_scale
    seen = {}

    def note(pipeline, step, timestep, tensors):
        names = ("guidance_scale", "num_timesteps", "attention_kwargs", "interrupt")
        seen.setdefault(type(pipeline).__module__, []).append(
            [getattr(pipeline, name) for name in names] + [int(timestep)]
        )
        pipeline._guidance_scale += 1.0
        return tensors

    found, expected = (p(**arguments(callback_on_step_end=note)).frames for p in (ours, theirs))
    one, other = seen.values()
    assert one == other
    assert (found - expected).abs().max() < 1e-4
    assert ours.guidance_scale == theirs.guidance_scale == 9.0


def test_the_callback_gets_the_pipeline(ours, arguments):
    given = []
    ours(**arguments(callback_on_step_end=lambda pipe, *rest: given.append(pipe) or {}))
    assert all(pipe is ours and isinstance(pipe, ConsisIDPipeline) for pipe in given)


def test_interrupt(ours, theirs, arguments):
    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 1
        return tensors

    found, expected = (p(**arguments(callback_on_step_end=stop, num_inference_steps=5)).frames for p in (ours, theirs))
    assert (found - expected).abs().max() < 1e-4
    assert ours.interrupt
    assert (ours(**arguments(num_inference_steps=5)).frames - found).abs().max() > 0.01
    assert not ours.interrupt


def test_a_call_inside_a_callback(ours, arguments):
    expected, inner = ours(**arguments(num_inference_steps=5)).frames, ours(**arguments(guidance_scale=3.0)).frames
    seen = []

    def nest(pipeline, step, timestep, tensors):
        if step == 2:
            seen.append(pipeline(**arguments(guidance_scale=3.0)).frames)
        assert pipeline.guidance_scale == 6.0
        assert pipeline.num_timesteps == 5
        return tensors

    assert ours(**arguments(num_inference_steps=5, callback_on_step_end=nest)).frames.equal(expected)
    assert seen[0].equal(inner)


def test_threads_on_one_pipeline(ours, arguments):
    """Each begins before another has ended: all wait for each other in their first callback's turn."""
    scales = (2.0, 4.0, 6.0)
    expected = [ours(**arguments(guidance_scale=scale)).frames for scale in scales]
    found, faults, begin = {}, [], threading.Barrier(len(scales))

    def work(scale):
        def check(pipeline, step, timestep, tensors):
            if pipeline.guidance_scale != scale:
                faults.append((scale, pipeline.guidance_scale))
            return tensors

        begin.wait()
        found[scale] = ours(**arguments(guidance_scale=scale, callback_on_step_end=check)).frames

    threads = [threading.Thread(target=work, args=(scale,)) for scale in scales]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert all(found[scale].equal(x) for scale, x in zip(scales, expected, strict=True))


def test_the_schedulers_generator_and_config_stay_the_callers(ours, arguments):
    config = dict(ours.scheduler.config)
    generator = torch.Generator().manual_seed(5)
    ours(**arguments(generator=generator))
    assert dict(ours.scheduler.config) == config
    assert not generator.get_state().equal(torch.Generator().manual_seed(5).get_state())


def test_progress(ours, arguments, capsys):
    ours.set_progress_bar_config(disable=False, desc="snow")
    ours(**arguments())
    assert "snow: 100%" in capsys.readouterr().err
    ours.set_progress_bar_config(disable=True)
    ours(**arguments())
    assert "snow" not in capsys.readouterr().err


def test_stats(ours, arguments):
    ours(**arguments())
    assert len(ours.stats.steps) == 3
    assert ours.stats.modes["cfg"] == "batched"
