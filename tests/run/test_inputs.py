"""Bad input gets one clear sentence, an exception of ours, exit code 2, and nothing half-written."""

import functools
import io
import socket
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from diffusers.callbacks import PipelineCallback
from PIL import Image
from skimage.data import astronaut
from support.people import bomb, png, random_face, random_identity

from consisid.engine import ConsisID, ConsisIDError, cli
from consisid.engine.errors import FaceError, InputError, NumericalError
from consisid.engine.util.cli import run
from consisid.engine.variants import TINY
from consisid.engine.video import Stats, Video
from consisid.export import cli as build_cli

CASES = {
    "height": ({"height": 100}, r"height=100 is not a positive multiple of 16; the nearest that works is 96"),
    "width": ({"width": 8}, r"width=8 .* nearest that works is 16"),
    "frames": ({"num_frames": 13}, r"num_frames=13 .*8k \+ 1; the nearest that works is"),
    "no frames": ({"num_frames": -7}, r"num_frames=-7"),
    "far too high": ({"height": 160_000}, r"height=160000 is more than 16384, the most pixels"),
    "far too wide": ({"width": 10**5000 * 16}, r"width=.* is more than 16384"),
    "not quite as wide": ({"width": 10**5000 + 1}, r"width=.* is not a positive multiple of 16; .* is 16384"),
    "large in all": ({"height": 16384, "width": 16384, "num_frames": 49}, r"are 13631488 tokens of video; at most"),
    "days of frames": ({"num_frames": 80_000_001}, r"num_frames=80000001 are 1080000054 tokens of video"),
    "nearly days": ({"num_frames": 80_000_002}, r"num_frames=80000002 is not of the form 8k \+ 1; .* is 80000001"),
    "too many steps": ({"num_inference_steps": 1001}, r"num_inference_steps=1001 is more than 1000, all that"),
    "large seed": ({"seed": 2**64}, r"seed=18446744073709551616 is not from -9223372036854775808 to"),
    "small seed": ({"seed": -(2**63) - 1}, r"seed=-9223372036854775809 is not from"),
    "seed of 5000 digits": ({"seed": 10**5000}, r"seed=.* is not from"),
    "prompt in Latin-1": ({"prompt": "caf\udce9"}, r"The prompt is not valid Unicode, it has '\\udce9' at character 4"),
    "one of several": ({"prompt": ["a", "\ud800"]}, r"The prompt is not valid Unicode, it has '\\ud800' at"),
    "negative in Latin-1": ({"negative_prompt": "\udcff"}, r"The negative_prompt is not valid Unicode"),
    "steps": ({"num_inference_steps": 0}, r"num_inference_steps=0 .*at least 1"),
    "both prompts": ({"prompt_embeds": torch.zeros(1, 32, 64)}, r"either a prompt or prompt_embeds"),
    "no prompt": ({"prompt": None}, r"either a prompt or prompt_embeds"),
    "height of a float": ({"height": 96.0}, r"height=96.0 is not a whole number"),
    "height of none": ({"height": 0}, r"height=0 is not a positive multiple"),
    "zero frames": ({"num_frames": 0}, r"num_frames=0 is not of the form"),
    "seed": ({"seed": 1.5}, r"seed=1.5 is not a whole number"),
    "generator": ({"generator": 1}, r"generator=1 is neither a torch.Generator"),
    "scale of text": ({"guidance_scale": "6"}, r"guidance_scale='6' is not a finite number"),
    "scale": ({"guidance_scale": float("nan")}, r"guidance_scale=nan is not a finite number"),
    "negative of a number": ({"negative_prompt": 3}, r"negative_prompt=3 is neither a text nor"),
    "latents of a list": ({"latents": [1]}, r"latents has to be a torch.Tensor, this is list"),
    "checkpoint every": ({"checkpoint_every": 0}, r"checkpoint_every=0 has to be at least 1"),
    "callback's latents": (
        {"num_inference_steps": 1, "callback_on_step_end": lambda *_: {"latents": torch.zeros(2)}},
        r"callback returned latents of \[2\] after step 1; it has to be a tensor of \[1, 5, 16, 12, 18\]",
    ),
    "two negatives": (
        {"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 32, 64)},
        r"negative_prompt or negative_prompt_embeds",
    ),
    "many negatives": ({"negative_prompt": ["a", "b"]}, r"2 negative prompts were given for 1"),
    "embeds of another model": (
        {"prompt": None, "prompt_embeds": torch.zeros(1, 226, 4096)},
        r"prompt_embeds has the shape \[1, 226, 4096\]; for this video it has to be \[1, 32, 64\]",
    ),
    "latents of another size": (
        {"latents": torch.zeros(1, 13, 16, 60, 90)},
        r"latents has the shape .*\[1, 5, 16, 12, 18\]",
    ),
    "output type": ({"output_type": "gif"}, r"output_type='gif' is none of"),
    "cfg": ({"cfg": "both"}, r"cfg='both' is none of"),
    "dynamic": ({"use_dynamic_cfg": "maybe"}, r"use_dynamic_cfg='maybe'"),
    "callback tensor": ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"Callbacks cannot have noise"),
    "seed and generator": ({"seed": 1, "generator": torch.Generator()}, r"Both a seed and a generator"),
    "latents of whole numbers": (
        {"latents": torch.zeros(1, 5, 16, 12, 18, dtype=torch.int64)},
        "latents has to be a torch.Tensor of floats in memory, this is torch.int64",
    ),
    "complex latents": ({"latents": torch.zeros(1, 5, 16, 12, 18, dtype=torch.complex64)}, "this is torch.complex64"),
    "sparse latents": ({"latents": torch.zeros(1, 5, 16, 12, 18).to_sparse()}, "latents has to be a torch.Tensor of"),
    "latents on meta": ({"latents": torch.zeros(1, 5, 16, 12, 18, device="meta")}, "latents has to be a torch.Tensor"),
    "embeds on meta": ({"prompt": None, "prompt_embeds": torch.zeros(1, 32, 64, device="meta")}, "prompt_embeds has"),
    "complex embeds": (
        {"prompt": None, "prompt_embeds": torch.zeros(1, 32, 64, dtype=torch.complex64)}, "this is torch.complex64"
    ),
    "embeds of nobody": ({"prompt": None, "prompt_embeds": torch.zeros(0, 32, 64)}, r"prompt_embeds has the shape"),
    "guidance of 400 digits": ({"guidance_scale": 10**5000}, "guidance_scale=.* is not a finite number"),
    "checkpoint with a null byte": ({"checkpoint": "a\0b"}, r"a\\x00b cannot be written \(.*null"),
    "checkpoint of a long name": ({"checkpoint": "x" * 300}, r"x cannot be written \(File name too long\)"),
    "checkpoint in place of a folder": ({"checkpoint": "/"}, "is not a checkpoint of a run"),
    "generators": ({"generator": [torch.Generator()] * 2}, r"2 generators were given for 1 videos"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_arguments(shallow, case):
    options, message = CASES[case]
    with pytest.raises(InputError, match=message):
        shallow.generate(random_identity(TINY), **{"prompt": "A man.", **options})


@pytest.mark.parametrize("scheduler", [None, 3, "ddim", object(), {}, CogVideoXDDIMScheduler, torch.ones(3)])
def test_what_is_no_scheduler(shallow_folder, scheduler):
    engine = ConsisID.open(shallow_folder)
    engine.scheduler = scheduler
    with pytest.raises(InputError, match=r"is no scheduler: it has no step or no config"):
        engine.generate(random_identity(TINY), "A man.")


def test_a_checkpoint_where_no_file_can_be_is_a_warning(shallow):
    """And no error when the run is finished and removes it."""
    options = {"seed": 1, "num_inference_steps": 1, "num_frames": 9, "output_type": "latent", "checkpoint_every": 1}
    with pytest.warns(UserWarning, match=r"/dev/null/x cannot be written .*The run goes on without this checkpoint"):
        video = shallow.generate(random_identity(TINY), "A man.", checkpoint="/dev/null/x", **options)
    assert video.latents.isfinite().all()


def test_a_checkpoint_that_cannot_be_removed_is_a_warning(shallow, tmp_path, monkeypatch):
    def refused(path, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(path))

    options = {"seed": 1, "num_inference_steps": 1, "num_frames": 9, "output_type": "latent", "checkpoint_every": 1}

    def callback(*_):
        monkeypatch.setattr("pathlib.Path.unlink", refused)  # root may remove everything

    kept = tmp_path / "run.safetensors"
    kept.touch()
    monkeypatch.setattr("consisid.engine.run.resume.RunFile.read", lambda *_: None)
    monkeypatch.setattr("consisid.engine.run.resume.RunFile.write", lambda *_: None)
    with pytest.warns(UserWarning, match=r"run.safetensors cannot be removed \(Permission denied\), and its run is"):
        shallow.generate(random_identity(TINY), "A man.", checkpoint=kept, callback_on_step_end=callback, **options)


def test_what_is_too_large_is_refused_before_anything_is_made_of_it(shallow, monkeypatch):
    monkeypatch.setattr("consisid.engine.api.run_with_oom_retry", lambda *_: pytest.fail("a run has begun"))
    for size in ({"height": 160_000}, {"num_frames": 80_000_001}):
        with pytest.raises(InputError, match=r"is more than|at most"):
            shallow.generate(random_identity(TINY), "A man.", **size)


def test_the_first_and_the_last_seed(shallow):
    options = {"num_inference_steps": 1, "num_frames": 9, "output_type": "latent"}
    for seed in (-(2**63), 2**64 - 1):
        assert shallow.generate(random_identity(TINY), "A man.", seed=seed, **options).latents.isfinite().all()


def test_what_is_cut_of_a_long_prompt_is_shown_in_a_line(shallow):
    with pytest.warns(UserWarning, match=r"this end of it has no effect: '.* word") as seen:
        shallow.generate(
            random_identity(TINY), "word " * 100_000, num_inference_steps=1, num_frames=9, output_type="latent"
        )
    assert len(str(seen[0].message)) < 400


def broken(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def test_photos(shallow, tmp_path):
    photos = {
        "nowhere.png: no such file": tmp_path / "nowhere.png",
        "empty.png": broken(tmp_path, "empty.png", b""),
        "text.png": broken(tmp_path, "text.png", b"this is no image"),
        "is a folder": tmp_path,
        "not int": 3,
        "not dict": {},
        "list of photos is empty": [],
    }
    for aligned in (True, False):
        for message, photo in photos.items():
            with pytest.raises(InputError, match=message):
                shallow.identify(photo, aligned=aligned)


def test_no_face(shallow, tmp_path):
    """The photo is named, and of several its number too."""
    blue = np.full((256, 256, 3), (30, 90, 160), np.uint8)
    with pytest.raises(FaceError, match=r"^the array: no face found"):
        shallow.identify(blue)
    Image.fromarray(blue).save(tmp_path / "blue.png")
    good = astronaut()[:330, 70:400]
    with pytest.raises(FaceError, match=r"^photo 2 of 3, .*blue\.png: no face found"):
        shallow.identify([good, str(tmp_path / "blue.png"), good])
    with pytest.raises(FaceError, match=r"^photo 3 of 3, the bytes: no face found"):
        shallow.identify((good, good, (tmp_path / "blue.png").read_bytes()))
    with pytest.raises(InputError, match=r"^photo 1 of 2, nowhere\.png: no such file"):
        shallow.identify(["nowhere.png", good])
    with pytest.raises(InputError, match=r"^photo 2 of 2 is a list itself; give one list of photos"):
        shallow.identify([good, [good]])
    with pytest.raises(FaceError, match=r"^photo 1 of 2, the array: no face in the box"):
        shallow.identify([good, good], face=(0.0, 0.9, 0.01, 1.0))


def test_a_photo_is_what_web_services_hold(shallow):
    """Bytes and open files are a photo like any other, not a list of numbers."""
    pixels = astronaut()[:330, 70:400]
    content = png(pixels)
    person = shallow.identify(content)
    assert shallow.identify(io.BytesIO(content)) is shallow.identify(bytearray(content)) is person
    assert torch.equal(shallow.identify(torch.from_numpy(pixels.copy())).id_cond, person.id_cond)


@pytest.mark.parametrize(
    "face", [None, True, 1.5, "tallest", "", [1], [[1], [2, 3]], ("a", "b", "c", "d"), (0, 0, float("nan"), 1), {}, {1},
             [[0, 0, 1, 1]], object()]
)  # fmt: skip
def test_what_chooses_no_face(shallow, face):
    with pytest.raises(InputError, match=r"face=.*: give 'largest', 'center'"):
        shallow.identify(astronaut(), face=face)


def test_nan_names_the_step(shallow):
    def callback(engine, step, timestep, tensors):
        return {"latents": tensors["latents"] * float("nan")} if step == 1 else {}

    with pytest.raises(NumericalError, match="after step 2 of 4"):
        shallow.generate(
            random_identity(TINY), "A man.", seed=1, num_inference_steps=4, callback_on_step_end=callback
        )  # fmt: skip


def test_a_callback_ends_the_run_as_in_diffusers(shallow):
    steps = []

    def callback(engine, step, timestep, tensors):
        steps.append((step, engine.num_timesteps))
        engine._interrupt = step == 1
        return tensors

    options = {"seed": 1, "num_inference_steps": 4, "output_type": "latent", "num_frames": 9}
    video = shallow.generate(random_identity(TINY), "A man.", callback_on_step_end=callback, **options)
    assert steps == [(0, 4), (1, 4)]
    again = shallow.generate(random_identity(TINY), "A man.", **options)
    assert video.latents.isfinite().all()
    assert not torch.equal(video.latents, again.latents)


def test_a_pipeline_callback_says_which_tensors_it_gets(shallow):
    class Callback(PipelineCallback):
        tensor_inputs: ClassVar = ["prompt_embeds"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            seen.append(sorted(callback_kwargs))
            return callback_kwargs

    seen: list[list[str]] = []
    options = {"seed": 1, "num_inference_steps": 1, "output_type": "latent", "num_frames": 9}
    shallow.generate(random_identity(TINY), "A man.", callback_on_step_end=Callback(), **options)
    assert seen == [["prompt_embeds"]]


@pytest.fixture
def one_engine(monkeypatch):
    """Commands that open the same folder share one engine."""
    opened = functools.cache(ConsisID.open)
    monkeypatch.setattr(ConsisID, "open", opened)


FILES = {
    "empty": b"", "text": b"this is no image", "cut": png(np.zeros((200, 200, 3), np.uint8))[:100], "bomb": bomb()
}  # fmt: skip


@pytest.mark.usefixtures("one_engine")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nowhere.png"], "nowhere.png: no such file"),
        (["--image", "{blue}"], "face"),
        (["--image", "{text}"], "text.png: is not an image"),
        (["--image", "{empty}"], "empty.png: is empty (0 bytes)"),
        (["--image", "{cut}"], "cut.png: is damaged"),
        (["--image", "{bomb}"], "bomb.png: is more than 89 megapixels"),
        (["--image", "{tmp}"], "is a folder"),
        (["--image", "https://example.org/me.png"], "me.png: cannot be fetched (no network); download"),
        (["--image", "{face}", "--face", "0.9,0.9,1,1,1"], "face=(0.9, 0.9, 1.0, 1.0, 1.0): give"),
        (["--image", "{face}", "--face", "a,b"], "face='a,b': give"),
        (["--image", "{face}", "--mode", "all"], "mode is one of crop, whole"),
        (["--image", "{face}", "--key-points", "photo"], "key_points one of crop, reference"),
        (["--image", "me.safetensors"], "There is no identity at me.safetensors"),
        (["--image", "{face}", "--aligned", "--save-crop", "{tmp}/crop.xyz"], "cannot be written"),
        (["--image", "{face}", "--aligned", "--save-identity", "{tmp}/me.pt"], "me.pt does not end in .safetensors"),
        (["--image", "{face}", "--aligned", "--prompt", " "], "The prompt is empty"),
        (["--image", "{face}", "--aligned", "--height", "90"], "the nearest that works is 96"),
        (["--image", "{face}", "--aligned", "--decode", "quick"], "decode='quick' is none of"),
        (["--image", "{face}", "--aligned", "--decode", "tiled", "--tile", "1", "1"], "tile=(1, 1) has to be"),
        (["--image", "{face}", "--aligned", "--cfg", "both"], "cfg='both' is none of"),
        (["--image", "{face}", "--device", "gpu"], "device='gpu' is not a device"),
        (["--image", "{face}", "--output", "{tmp}/out.avi"], "ends in none of .mp4, .gif"),
        (["--image", "{face}", "--output", "{tmp}/text.png/out.mp4"], "out.mp4 cannot be written in"),
        (["--image", "{face}", "--checkpoint", "{tmp}"], "is a folder; give the file to write"),
    ],
)
def test_generate_exits_with_2_and_one_line(shallow_folder, tmp_path, capsys, monkeypatch, arguments, message):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    before = prepare(tmp_path)
    arguments = [a.format(tmp=tmp_path, **{name: tmp_path / f"{name}.png" for name in before}) for a in arguments]
    for flag, value in (("--prompt", "A man."), ("--output", str(tmp_path / "out.mp4"))):
        arguments += [] if flag in arguments else [flag, value]
    assert cli.main([str(shallow_folder), *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert {p.stem for p in tmp_path.iterdir()} == before


def prepare(folder):
    """The photos of the test, by name."""
    random_face().save(folder / "face.png")
    Image.new("RGB", (200, 200), (30, 90, 160)).save(folder / "blue.png")
    for name, content in FILES.items():
        (folder / f"{name}.png").write_bytes(content)
    return {"face", "blue", *FILES}


@pytest.mark.parametrize(
    ("engine", "message"),
    [("nowhere", "nowhere; make one with consisid-build"), ("{tmp}", "is not an engine folder")],
)
def test_what_is_no_engine(tmp_path, capsys, engine, message):
    options = ["--image", "me.png", "--prompt", "A man.", "--output", str(tmp_path / "out.mp4")]
    assert cli.main([engine.format(tmp=tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("one_engine")
def test_the_output_is_tried_before_anything_is_computed(monkeypatch, capsys):
    """A folder in which nobody, not even root, makes a file."""
    monkeypatch.setattr(ConsisID, "open", lambda *a, **k: pytest.fail("opened"))
    arguments = ["engine", "--image", "me.png", "--prompt", "A man.", "--output", "/proc/x.mp4"]
    assert cli.main(arguments) == 2
    assert "/proc/x.mp4 cannot be written in /proc (" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line(capsys):
    def full():
        raise OSError(28, "No space left on device", "/out.mp4")

    assert run("consisid-generate", full) == 2
    expected = "consisid-generate: error: /out.mp4: No space left on device; check the path, its permissions and the "
    assert capsys.readouterr().err == expected + "free space.\n"


def test_an_interrupt_says_what_is_left(tmp_path, monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "generate", interrupt)
    steps = tmp_path / "steps.safetensors"
    arguments = ["engine", "--image", "me.png", "--prompt", "A man.", "--output", "out.mp4", "--checkpoint", str(steps)]
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err.endswith("interrupted; no video was written.\n")
    steps.touch()
    assert cli.main(arguments) == 130
    assert f"finished steps are in {steps}, the same command goes on" in capsys.readouterr().err


@pytest.mark.usefixtures("one_engine")
def test_every_option_reaches_the_engine(shallow_folder, tmp_path, monkeypatch):
    """What the command line asks of identify() and of generate()."""
    asked = {}

    def noted(name, result):
        return lambda self, *arguments, **keywords: asked.update({name: (arguments, keywords)}) or result

    video = Video(np.zeros((1, 32, 48, 3), np.uint8), 8, Stats(), shape=(1, 32, 48), settings={"seed": 5})
    monkeypatch.setattr(ConsisID, "identify", noted("identify", random_identity(TINY)))
    monkeypatch.setattr(ConsisID, "generate", noted("generate", video))
    text = """--image a.png b.png --face 0.1,0.2,0.5,0.9 --mode whole --key-points reference --negative-prompt dull
        --dynamic-cfg step --cfg sequential --decode tiled --tile 6 10 --checkpoint-every 2 --prompt walks --steps 7"""
    arguments = text.split()
    kept = tmp_path / "me.safetensors"
    output = ["--output", str(tmp_path / "out.mp4"), "--save-identity", str(kept)]
    assert cli.main([str(shallow_folder), *arguments, *output]) == 0
    settings = {"face": (0.1, 0.2, 0.5, 0.9), "aligned": False, "mode": "whole", "key_points": "reference"}
    assert asked.pop("identify") == ((["a.png", "b.png"],), settings)
    _, options = asked["generate"]
    expected = {
        "negative_prompt": "dull", "use_dynamic_cfg": "step", "cfg": "sequential", "decode": "tiled", "tile": (6, 10),
        "checkpoint_every": 2, "num_inference_steps": 7,
    }  # fmt: skip
    assert {name: options[name] for name in expected} == expected
    assert cli.main([str(shallow_folder), "--image", str(kept), "--prompt", "walks", *output[:2]]) == 0
    assert "identify" not in asked
    assert torch.equal(asked["generate"][0][0].id_cond, random_identity(TINY).id_cond)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere"], "is neither a folder nor a hub id"),
        (["{tmp}"], "is not a complete ConsisID checkpoint: transformer/config.json is missing"),
        (["1.5"], "1.5 is the name of a model; give its checkpoint (BestWishYsh/ConsisID-1.5)"),
        (["a b/c"], "is neither a folder nor a hub id"),
        (["{tiny}", "--backend", "magic"], "There is no backend called 'magic'"),
        (["{tiny}", "--num-frames", "13"], "num_frames=13"),
        (["{tiny}", "--device", "cuda"], "sees no CUDA GPU"),
    ],
)
def test_build_exits_with_2_and_leaves_nothing(shallow_checkpoint, tmp_path, capsys, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    arguments = [a.format(tmp=tmp_path, tiny=shallow_checkpoint) for a in arguments]
    assert build_cli.main([*arguments, "--output", str(tmp_path / "engine")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    video = Video(np.zeros((2, 32, 48, 3), np.uint8), 8, Stats())
    path = video.save(tmp_path / "video.mp4")
    before = path.read_bytes()
    video.frames = [np.zeros((3, 3, 3), np.uint8)]  # x264 takes no odd sizes
    with pytest.raises(Exception, match=r"avcodec|Invalid"):
        video.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]


def test_the_command_line_makes_a_playable_video(shallow_folder, tmp_path):
    import av

    random_face().save(tmp_path / "face.png")
    photo = tmp_path / "face.png"
    command = [sys.executable, "-m", "consisid.engine.cli", shallow_folder, "--image", photo, "--aligned"]
    command += ["--prompt", "A man.", "--seed", "3", "--steps", "1", "--output", tmp_path / "out.mp4"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    first, last = result.stdout.strip().splitlines()
    assert first.endswith("144x96, 17 frames at 8 per second, seed 3")
    assert "denoise" in last
    assert "1 steps of" in last
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.height, stream.width) == ("h264", 8, 96, 144)
        assert sum(1 for _ in container.decode(stream)) == 17


def test_errors_of_ours_are_one_family():
    assert issubclass(InputError, ConsisIDError)
    assert issubclass(InputError, ValueError)
