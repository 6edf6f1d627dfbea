"""docs/migrating.md: its scripts run, before and after, and its table of names is that of diffusers' class."""

import inspect
import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.utils import export_utils
from PIL import Image
from safetensors.torch import save_file
from skimage.data import astronaut
from support.engines import SHALLOW
from support.people import random_identity

from consisid.engine import ConsisIDPipeline
from consisid.engine.errors import InputError

TEXT = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()
SCRIPTS = re.findall(r"```python\n# (before|after)\n(.*?)```", TEXT, re.DOTALL)
ROW = re.compile(r"\| (`\w+`(?: `\w+`)*) \| (same|better|refused)")
NAMES = {name: kind for names, kind in ROW.findall(TEXT) for name in re.findall(r"`(\w+)`", names)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the scripts read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_utils, "is_imageio_available", lambda: False)  # which is there without its ffmpeg
    person = random_identity(SHALLOW)
    torch.save({"id_cond": person.id_cond, "id_vit_hidden": list(person.id_vit_hidden)}, "face.pt")
    person.image.save("face.png")
    Image.fromarray(astronaut()).save("me.jpg")
    name = "transformer.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    width = SHALLOW.transformer.inner_dim
    save_file({name.format("A"): torch.ones(1, width), name.format("B"): torch.ones(width, 1)}, "snow.safetensors")
    return tmp_path


def on_tiny(script: str, checkpoint: Path) -> str:
    """The script with the small model, its size and the CPU in the places of the official one and its own."""
    small = {
        '"BestWishYsh/ConsisID-preview"': repr(str(checkpoint)), "torch.bfloat16": "torch.float32", '"cuda"': '"cpu"',
        "height=480": f"height={SHALLOW.height}", "width=720": f"width={SHALLOW.width}",
        "num_frames=49": "num_frames=9", "num_inference_steps=50": "num_inference_steps=2",
    }  # fmt: skip
    for old, new in small.items():
        if old != '"cuda"':
            assert old in script, old
        script = script.replace(old, new)
    return script


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("index", range(len(SCRIPTS)), ids=[f"{i // 2} {when}" for i, (when, _) in enumerate(SCRIPTS)])
def test_a_script_runs(place, shallow, index):
    when, script = SCRIPTS[index]
    code = on_tiny(script, shallow.checkpoint.path)
    if when == "before":
        # diffusers offloads to a GPU alone, trips over tiles of this size, and takes its length of text for every
        # model's.
        code = re.sub(r"pipe\.(enable_sequential_cpu_offload|vae\.enable_tiling)\(.*\)\n", "", code)
        code = code.replace("num_inference_steps=2", "num_inference_steps=2, max_sequence_length=32")
    exec(compile(code, f"script {index}", "exec"), {"__name__": "__main__"})
    (video,) = place.glob("*.mp4")
    assert video.stat().st_size > 1000


def test_there_are_three_scripts_before_and_after():
    assert [when for when, _ in SCRIPTS] == ["before", "after"] * 3


def test_every_public_name_is_in_the_table():
    public = {name for name in dir(diffusers.ConsisIDPipeline) if not name.startswith("_")} | {"__call__"}
    assert NAMES.keys() == public


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_the_table_says(name):
    found, reference = getattr(ConsisIDPipeline, name), getattr(diffusers.ConsisIDPipeline, name)
    assert callable(found) == callable(reference)
    if NAMES[name] == "refused":
        with pytest.raises(InputError):
            found({}, None)
    elif callable(reference):
        wanted = inspect.signature(reference).parameters.values()
        own = inspect.signature(found).parameters
        takes_more = any(p.kind is p.VAR_KEYWORD for p in own.values())
        assert all(p.name in own or takes_more for p in wanted if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
