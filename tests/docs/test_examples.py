"""Every script in docs/examples runs on TINY and writes what it says, and so do the cells of the notebook."""

import ast
import json
import os
import runpy
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from diffusers.utils import export_utils
from PIL import Image
from safetensors.torch import save_file
from support.engines import SHALLOW
from support.loras import lora

from consisid.engine import ConsisID, Identity

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "docs" / "examples"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
FRAMES = SHALLOW.num_frames


@pytest.fixture
def example(shallow_folder, photo, tmp_path, monkeypatch, capsys):
    """Runs a script as `python docs/examples/NAME.py ENGINE PHOTO ...` would in an empty folder; returns its lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_utils, "is_imageio_available", lambda: False)  # which is there without its ffmpeg

    def run(name, *arguments):
        script = FOLDER / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), str(shallow_folder), str(photo), *arguments])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def frames_of(path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def check_video(path) -> np.ndarray:
    frames = frames_of(path)
    assert frames.shape == (FRAMES, SHALLOW.height, SHALLOW.width, 3)
    return frames


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two files show the same video."""
    return np.array_equal(one, other)


def test_there_are_ten_and_each_has_a_test():
    assert len(SCRIPTS) == 10
    assert [name for name in SCRIPTS if f"test_{name}" not in globals()] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_how_it_is_called(name):
    text = (FOLDER / f"{name}.py").read_text()
    words = ast.get_docstring(ast.parse(text))
    assert f"\npython docs/examples/{name}.py engines/preview me.jpg" in words
    assert len(text.splitlines()) <= 45


def test_first_video(example):
    lines = example("first_video", "--steps", "2", "--output", "out.mp4")
    check_video("out.mp4")
    assert lines[0] == "out.mp4"
    assert "2 steps of" in lines[1]


def test_several_prompts(example):
    lines = example("several_prompts", "--prompts", "A man.", "A woman.", "--steps", "1", "--output", "videos")
    assert lines == ["videos/1.mp4 A man.", "videos/2.mp4 A woman."]
    assert not alike(check_video("videos/1.mp4"), check_video("videos/2.mp4"))


def test_keep_a_person(example, monkeypatch):
    arguments = ("keep_a_person", "--steps", "1", "--identity", "me.safetensors", "--output")
    assert example(*arguments, "first.mp4") == ["me.safetensors: saved", "first.mp4"]
    assert Image.open("me.png").size == Identity.load("me.safetensors").preview().size
    monkeypatch.setattr(ConsisID, "identify", None)  # the photo is not looked at again
    assert example(*arguments, "second.mp4") == ["me.safetensors: loaded", "second.mp4"]
    assert alike(check_video("first.mp4"), check_video("second.mp4"))


def test_lora(example, shallow):
    save_file(lora(shallow.checkpoint), "style.safetensors")
    example("lora", "--lora", "style.safetensors", "--steps", "1", "--output", "videos")
    assert not alike(check_video("videos/with.mp4"), check_video("videos/without.mp4"))
    example("first_video", "--steps", "1", "--output", "plain.mp4")
    assert alike(frames_of("videos/without.mp4"), frames_of("plain.mp4"))


def test_another_scheduler(example):
    lines = example("another_scheduler", "--steps", "2", "--output", "out.mp4")
    assert lines == ["CogVideoXDPMScheduler -> UniPCMultistepScheduler", "out.mp4"]
    example("first_video", "--steps", "2", "--output", "own.mp4")
    assert not alike(check_video("out.mp4"), check_video("own.mp4"))


def test_memory_budget(example):
    lines = example("memory_budget", "--memory", "1GiB", "--steps", "1", "--output", "out.mp4")
    check_video("out.mp4")
    assert any("denoise" in line for line in lines)
    assert lines[-1].startswith("predicted 0.")


def test_stream_frames(example):
    lines = example("stream_frames", "--steps", "1", "--output", "frames")
    assert sorted(os.listdir("frames")) == [f"{number:03d}.png" for number in range(FRAMES)]
    assert lines[:-1] == [f"frame {number}" for number in range(FRAMES)]
    assert Image.open("frames/000.png").size == (SHALLOW.width, SHALLOW.height)


def test_progress_and_interrupt(example):
    lines = example("progress_and_interrupt", "--steps", "4", "--seconds", "0", "--output", "out.mp4")
    check_video("out.mp4")
    assert [lines[0].split(",")[0], lines[-1]] == ["step 1 of 4", "out.mp4 1 steps"]
    assert len(example("progress_and_interrupt", "--steps", "3", "--output", "whole.mp4")) == 3 + 1


def test_resume(example):
    with pytest.raises(SystemExit, match="has the finished steps"):
        example("resume", "--steps", "4", "--die-after", "3", "--output", "video.mp4")
    assert os.listdir() == ["video.safetensors"]
    assert example("resume", "--steps", "4", "--output", "video.mp4")[-2:] == ["step 4 of 4", "video.mp4"]
    assert os.listdir() == ["video.mp4"]
    example("first_video", "--steps", "4", "--output", "at-once.mp4")
    assert alike(check_video("video.mp4"), check_video("at-once.mp4"))


@pytest.mark.filterwarnings("ignore")
def test_drop_in_pipeline(example):
    assert example("drop_in_pipeline", "--steps", "1", "--output", "out.mp4")[-1] == "out.mp4"
    check_video("out.mp4")


def test_the_notebook(tmp_path, monkeypatch, capsys):
    """Cell by cell, as a kernel would run them."""
    notebook = json.loads((FOLDER / "first_video.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert len(frames_of("first.mp4")) == 17
    assert "4 steps of" in capsys.readouterr().out
