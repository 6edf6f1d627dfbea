"""Callers in the inference mode of PyTorch, as ComfyUI is when it runs nodes: nothing that is kept is of that mode."""

import torch
from support.loras import latents, lora

from consisid.engine import ConsisID


def test_an_engine_that_is_opened_and_used_in_inference_mode(shallow, shallow_folder):
    """The same latents, in that mode and after it, also with what is changed in place: weights, by LoRAs."""
    wanted = latents(shallow)
    with torch.inference_mode():
        engine = ConsisID.open(shallow_folder)
        seen = []
        inside = latents(engine, callback_on_step_end=lambda *given: seen.append(given[1]))
        assert torch.is_inference_mode_enabled()
    assert seen == [0, 1]
    assert not inside.is_inference()
    assert torch.equal(inside, wanted)
    engine.load_lora_weights(lora(engine.checkpoint), adapter_name="one")
    changed = latents(engine)
    assert not torch.equal(changed, wanted)
    with torch.inference_mode():
        engine.unload_lora_weights()
        assert torch.equal(latents(engine), wanted)
    assert torch.equal(latents(engine), wanted)
