"""LoRAs by the names that the server gives them."""

import openai
import pytest
from safetensors.torch import save_file
from support.loras import lora
from support.serving import running

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_lora_changes_its_video_alone(shallow, shallow_folder, tmp_path, photo):
    """Videos with and without one, asked for together: each as if it were alone; a weight of 0 is none."""
    save_file(lora(shallow.checkpoint), tmp_path / "style.safetensors")
    loras = {"style": str(tmp_path / "style.safetensors")}
    with running(shallow_folder, tmp_path / "data", loras=loras) as server:
        client = server.client()
        person = client.videos.create_character(name="E", video=("p.png", photo)).id
        assert client.models.list().data[0].loras == ["style"]
        body = {"character": person, "num_inference_steps": 2, "num_frames": 9, "seed": 1}
        asked = [{}, {"lora": "style"}, {}, {"lora": "style", "lora_weight": 0}, {"lora": "style"}]
        ids = [client.videos.create(prompt="A.", extra_body={**body, **more}).id for more in asked]
        for id in ids:
            assert client.videos.poll(id, poll_interval_ms=20).status == "completed"
        plain, styled, again, weightless, twice = (client.videos.download_content(id).read() for id in ids)
        assert styled == twice
        assert plain == again
        assert styled != plain
        assert client.videos.retrieve(ids[3]).settings["loras"] == {"style": 0}
        assert weightless != styled
        with pytest.raises(openai.BadRequestError, match="There is no LoRA called 'other' here; there are: style"):
            client.videos.create(prompt="A.", extra_body={**body, "lora": "other"})
