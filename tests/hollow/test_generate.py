"""A video from an engine on "cuda": every path that a GPU takes, as far as a device without arithmetic goes."""

import threading

import numpy as np
import pytest
import torch
from hollow.calls import LAUNCHES, Kind
from PIL import Image

from consisid.engine import ConsisID

from .conftest import OPTIONS, PROMPT

STEPS = OPTIONS["num_inference_steps"]
HEIGHT, WIDTH, FRAMES = 96, 144, 9


class Killed(BaseException):
    pass


def test_every_dtype_is_built_opened_and_run(hollow, any_folder, person):
    engine = ConsisID.open(any_folder, device="cuda", warm_up=True)
    assert set(engine.warmed) == set(engine.manifest.graphs)
    video = engine.generate(person, PROMPT, **{**OPTIONS, "output_type": "uint8"})
    assert video.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert len(video.stats.steps) == STEPS
    assert 0 < video.stats.peak_bytes <= hollow.peak()
    assert hollow.count(Kind.KERNEL) > 0 < hollow.count(Kind.LIBRARY)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
@pytest.mark.parametrize("memory", [None, "4GiB", "980MiB"])
def test_a_device_by_name(hollow, folder, person, name, memory):
    """All that an engine launches, copies and allocates is on its device, whatever the caller's current one is."""
    index = int(name[5:] or 0)
    with torch.cuda.device(1 - index if name != "cuda" else 0), hollow.recorded() as record:
        used = hollow.used(1 - index)
        hollow.reset_peaks()
        engine = ConsisID.open(folder, device=name, memory=memory)
        engine.generate(person, PROMPT, **OPTIONS)
        assert torch.cuda.current_device() == (1 - index if name != "cuda" else 0)
    assert str(engine.device) == f"cuda:{index}"
    assert record.faults == []
    assert {call.device for call in record.of(*LAUNCHES, Kind.MALLOC, Kind.TO_DEVICE, Kind.EVENT_RECORD)} == {index}
    assert hollow.peak(1 - index) == used


def test_a_device_that_is_not_there(folder):
    with pytest.raises(Exception, match=r"cuda:7.*PyTorch sees 2 CUDA GPUs") as caught:
        ConsisID.open(folder, device="cuda:7")
    assert type(caught.value).__name__ == "InputError"


def test_a_photograph_is_identified(hollow, engine):
    """Every graph of the face path; where the detectors' outputs are all alike, an aligned crop needs none."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (512, 512, 3), dtype=np.uint8))
    me = engine.identify(photo, aligned=True)
    assert me.id_cond.shape[-1] == engine.variant.transformer.LFE_id_dim
    calls = engine.generate(me, PROMPT, **OPTIONS).stats.calls
    assert calls["face_extract"] == 1
    assert "face_extract" not in engine.generate(me, PROMPT, **OPTIONS).stats.calls


def test_frames_are_streamed(engine, person):
    options = {**OPTIONS, "output_type": "stream"}
    frames = list(engine.generate(person, PROMPT, **options).frames)
    assert len(frames) == FRAMES
    halfway = engine.generate(person, PROMPT, **options).frames
    next(halfway)
    halfway.close()
    assert len(engine.generate(person, PROMPT, **OPTIONS).stats.steps) == STEPS


@pytest.mark.parametrize("kind", ["np", "pt", "pil", "uint8"])
def test_every_output_type(engine, person, kind):
    assert len(engine.generate(person, PROMPT, **{**OPTIONS, "output_type": kind}).frames) == FRAMES


def test_several_videos_and_guidance_modes(engine, person):
    videos = engine.generate(person, [PROMPT, "Another."], **OPTIONS)
    assert len(videos) == 2
    for cfg, heads in (("batched", STEPS), ("sequential", 2 * STEPS)):
        assert engine.generate(person, PROMPT, cfg=cfg, **OPTIONS).stats.calls["head"] == heads
    assert engine.generate(person, PROMPT, **OPTIONS, guidance_scale=1.0).stats.calls["head"] == STEPS


def test_a_generator_of_the_device(engine, person):
    options = {**OPTIONS, "seed": None}
    engine.generate(person, PROMPT, generator=torch.Generator("cuda").manual_seed(1), **options)


def test_a_killed_run_goes_on_from_its_checkpoint(engine, person, tmp_path):
    path = tmp_path / "run.safetensors"

    def dies(owner, step, timestep, tensors):
        if step == 1:
            raise Killed
        return {}

    with pytest.raises(Killed):
        engine.generate(person, PROMPT, checkpoint=path, checkpoint_every=1, callback_on_step_end=dies, **OPTIONS)
    assert path.exists()
    stats = engine.generate(person, PROMPT, checkpoint=path, **OPTIONS).stats
    assert stats.calls["head"] == STEPS - 1
    assert not path.exists()


def test_an_interrupt_is_a_clean_stop(hollow, engine, person):
    def stop(owner, step, timestep, tensors):
        owner._interrupt = step == 0
        return {}

    assert len(engine.generate(person, PROMPT, callback_on_step_end=stop, **OPTIONS).stats.steps) == 1
    assert len(engine.generate(person, PROMPT, **OPTIONS).stats.steps) == STEPS


@pytest.mark.parametrize("memory", [None, "980MiB"])
def test_control_c_leaves_nothing_behind(hollow, folder, person, memory):
    engine = ConsisID.open(folder, device="cuda", memory=memory)
    engine.generate(person, PROMPT, **OPTIONS)
    torch.cuda.empty_cache()
    used = hollow.used()

    def interrupted(*_):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            engine.generate(person, PROMPT, callback_on_step_end=interrupted, **OPTIONS)
        torch.cuda.empty_cache()
        assert hollow.used() == used
    engine.generate(person, PROMPT, **OPTIONS)


def test_two_engines_on_two_devices(hollow, folder, person):
    """In turns, and each in a thread of its own."""
    engines = [ConsisID.open(folder, device=f"cuda:{index}", memory="4GiB") for index in (0, 1)]
    for engine in (*engines, *engines):
        engine.generate(person, PROMPT, **OPTIONS)
    made, failed = [], []

    def work(engine):
        try:
            made.append(engine.generate(person, PROMPT, **OPTIONS).stats.modes["device"])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    with hollow.recorded() as record:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    assert sorted(made) == ["cuda:0", "cuda:1"]
    assert record.faults == []


def test_a_new_thread_launches_on_the_engines_device(hollow, folder, person):
    """Triton asks the thread's context, and a new thread has none."""
    engine, made = ConsisID.open(folder, device="cuda:1"), []
    thread = threading.Thread(target=lambda: made.append(engine.generate(person, PROMPT, **OPTIONS)))
    with hollow.recorded() as record:
        thread.start()
        thread.join()
    assert len(made) == 1
    assert {call.device for call in record.of(*LAUNCHES)} == {1}


def test_on_a_stream_of_the_callers(hollow, engine, person):
    """The caller's current stream computes; copies of weights have one of their own."""
    engine.generate(person, PROMPT, **OPTIONS)
    stream = torch.cuda.Stream()
    with hollow.recorded() as record, torch.cuda.stream(stream):
        engine.generate(person, PROMPT, **OPTIONS)
    launched = {call.stream for call in record.of(*LAUNCHES)}
    assert len(launched) == 1
    assert launched != {0}


def lora(rank=4, seed=0):
    """A LoRA of TINY's first and last block."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for layer in (0, 3):
        for name in ("attn1.to_q", "attn1.to_v", "attn1.to_out.0"):
            key = f"transformer.transformer_blocks.{layer}.{name}"
            state[f"{key}.lora_A.weight"] = torch.randn(rank, 192, generator=generator)
            state[f"{key}.lora_B.weight"] = torch.randn(192, rank, generator=generator)
    return state


@pytest.mark.parametrize("memory", [None, "980MiB"])
def test_loras_are_loaded_weighted_and_unloaded(hollow, folder, person, memory):
    engine = ConsisID.open(folder, device="cuda", memory=memory)

    def modes():
        return engine.generate(person, PROMPT, **OPTIONS).stats.modes.get("lora")

    assert modes() is None
    engine.load_lora_weights(lora(), adapter_name="a")
    engine.load_lora_weights(lora(2, 1), adapter_name="b")
    engine.set_adapters(["a", "b"], [0.8, 0.5])
    assert modes() == "6 tensors at 0.8, 6 tensors at 0.5"
    torch.cuda.empty_cache()
    used = hollow.used()
    engine.set_adapters("a", 0.5)
    assert modes() == "6 tensors at 0.5"
    torch.cuda.empty_cache()
    assert hollow.used() == used
    engine.unload_lora_weights()
    assert modes() is None


def test_a_process_keeps_its_own_limit(hollow, folder, person):
    """What of the device the caller lets this process reserve is the same afterwards, after an error too."""
    torch.cuda.set_per_process_memory_fraction(0.5, 0)
    try:
        engine = ConsisID.open(folder, device="cuda", memory="4GiB")
        engine.generate(person, PROMPT, **OPTIONS)
        assert torch.cuda.get_per_process_memory_fraction(0) == 0.5
        with pytest.raises(Killed):
            engine.generate(person, PROMPT, callback_on_step_end=raises, **OPTIONS)
        assert torch.cuda.get_per_process_memory_fraction(0) == 0.5
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


def raises(*_):
    raise Killed
