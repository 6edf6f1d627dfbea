"""The command lines: one line and an exit code for everything, an interrupt at any time, and no traceback."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut
from support.people import random_face, random_identity

from consisid.bench import cli as bench_cli
from consisid.engine import ConsisID, __version__, cli
from consisid.engine.util.cli import FAULT, REFUSED, run
from consisid.engine.util.interrupts import INTERRUPTED
from consisid.engine.variants import TINY
from consisid.engine.video import Stats, Video
from consisid.export import cli as build_cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODULES = {
    "consisid-generate": "consisid.engine.cli",
    "consisid-build": "consisid.export.cli",
    "consisid-bench": "consisid.bench.cli",
    "consisid-serve": "consisid.engine.serve.cli",
}
ARGUMENTS = {
    "consisid-generate": ["engine", "--image", "me.png", "--prompt", "A man.", "--output", "out.mp4"],
    "consisid-build": ["tiny", "--output", "engine"],
    "consisid-bench": ["engine", "--output", "report"],
    "consisid-serve": ["engine", "--port", "0"],
}


def started(name, how="script"):
    """How a command begins: as its script does, or by `python -m`."""
    module = MODULES[name]
    entry, command = module.replace(".cli", ".entry"), name.partition("-")[2]
    script = f"import sys; from {entry} import {command}; sys.exit({command}())"
    return [sys.executable, "-c", script] if how == "script" else [sys.executable, "-m", module]


def command(name, *arguments, how="script", **options):
    """A command in a process of its own."""
    given = arguments or ARGUMENTS[name]
    return subprocess.run([*started(name, how), *given], capture_output=True, timeout=120, **options)


def before_others(folder):
    """An environment in which what is in a folder is imported first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


# PyTorch is what takes long to import. This one is interrupted while it is, once in plain code, and once where whoever
# imports it swallows every exception, as libraries do.
PLAIN = "os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"
SWALLOWED = "\ntry:\n    {PLAIN}\nexcept BaseException:\n    pass\ntime.sleep(30)".replace("{PLAIN}", PLAIN)


@pytest.mark.parametrize("code", [PLAIN, SWALLOWED], ids=["plain", "swallowed"])
@pytest.mark.parametrize("how", ["script", "module"])
@pytest.mark.parametrize("name", MODULES)
def test_an_interrupt_in_the_first_seconds(name, how, code, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"import os, signal, time\n{code}\n")
    result = command(name, how=how, env=before_others(tmp_path), cwd=tmp_path)
    assert result.returncode == INTERRUPTED
    assert result.stderr.decode() == f"{name}: interrupted; nothing was written.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["torch"]


@pytest.mark.parametrize("name", MODULES)
def test_an_interrupt_before_the_command_is_there(name, tmp_path):
    """The first import of a command is interrupted, long before that of PyTorch."""
    (tmp_path / "argparse.py").write_text(f"import os, signal, time\n{PLAIN}\n")
    result = command(name, env=before_others(tmp_path), cwd=tmp_path)
    assert result.returncode == INTERRUPTED
    assert result.stderr.decode() == f"{name}: interrupted; nothing was written.\n"


def test_who_ignores_interrupts_is_not_interrupted(tmp_path):
    """As `nohup` does for what runs in the background: Python leaves it alone then."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise ImportError('no torch')\n"
    )
    script = (
        f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from {MODULES['consisid-generate']} import main"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"{script}; main()", *ARGUMENTS["consisid-generate"]],
        env=before_others(tmp_path), capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert "no torch" in result.stderr
    assert "interrupted" not in result.stderr


def test_an_interrupt_that_python_swallows_comes_again(capsys):
    """In a callback of a weak reference, as the import system has them, an exception can only be reported."""

    class Thing:
        pass

    def work():
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        gc.collect()
        for _ in range(300):  # a single wait would not be ended by it
            time.sleep(0.1)
        pytest.fail(f"went on: {reference}")

    assert run("consisid-bench", work) == INTERRUPTED
    assert capsys.readouterr().err == "consisid-bench: interrupted; nothing was written.\n"


def test_commands_hear_an_interrupt_before_anything_heavy_is_imported():
    for name, module in MODULES.items():
        script = f"import sys, {module}; print(*{{'torch', 'numpy', 'PIL', 'diffusers'}} & set(sys.modules))"
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "", name


def test_the_names_of_the_package_come_when_they_are_asked_for():
    import consisid.engine as package

    assert {"ConsisID", "ConsisIDError", "Identity", "Video"} <= set(dir(package))
    assert package.ConsisID is ConsisID
    with pytest.raises(AttributeError, match="has no attribute 'Consisid'"):
        _ = package.Consisid


def test_a_fault_of_ours_is_one_line_that_names_where_it_is_kept(capsys):
    def work():
        raise KeyError("a\nb")

    assert run("consisid-bench", work) == FAULT
    line = capsys.readouterr().err
    assert line.startswith(
        r"consisid-bench: error: KeyError: 'a\nb'; this is a fault of consisid, please report it with "
    )
    assert line.count("\n") == 1
    kept = Path(line.split()[-1].rstrip("."))
    assert "raise KeyError" in kept.read_text()
    kept.unlink()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "this machine has too little memory for it"),
        (OSError("a\nb" + "x" * 10**5), "a b"),
        (OSError(28, "No space left on device", "/\udcff"), r"/\udcff: No space left on device"),
    ],
)
def test_what_a_machine_refuses_is_one_line(capsys, error, line):
    def work():
        raise error

    assert run("consisid-bench", work) == REFUSED
    said = capsys.readouterr().err
    assert said.startswith(f"consisid-bench: error: {line}")
    assert said.count("\n") == 1
    assert len(said) < 1200


def test_nobody_reads_the_output(tmp_path):
    """As in `consisid-build --list engine | head -0`."""
    script = "from consisid.engine.util.cli import run; import sys; sys.exit(run('x', lambda: print('a' * 10**6)))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == FAULT


def test_a_full_output():
    script = "from consisid.engine.util.cli import run; import sys; sys.exit(run('x', lambda: print('a')))"
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.stderr.splitlines()[0].startswith("x: error: [Errno 28] No space left on device; check")
    assert "Traceback" not in result.stderr


def test_names_and_prompts_that_are_not_utf8(shallow_folder, tmp_path):
    """What a shell passes on in Latin-1: a prompt is refused, a file is only a file."""
    folder = os.fsencode(tmp_path)
    random_face().save(tmp_path / "me.png")
    os.rename(tmp_path / "me.png", folder + b"/m\xe9.png")
    photo, output = folder + b"/m\xe9.png", folder + b"/n\xe9ve.mp4"
    options = ["--steps", "1", "--num-frames", "9", "--output", output, "--image", photo, "--aligned"]
    refused = command("consisid-generate", shallow_folder, *options, "--prompt", b"caf\xe9")
    assert refused.returncode == REFUSED
    assert rb"The prompt is not valid Unicode, it has '\udce9' at character 4; write it in UTF-8." in refused.stderr
    assert os.listdir(folder) == [b"m\xe9.png"]
    made = command("consisid-generate", shallow_folder, *options, "--prompt", "café", "--quiet")
    assert (made.returncode, made.stderr) == (0, b"")
    assert rb"n\udce9ve.mp4: 144x96, 9 frames at 8 per second" in made.stdout
    assert sorted(os.listdir(folder)) == [b"m\xe9.png", b"n\xe9ve.mp4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "1001"], "num_inference_steps=1001 is more than 1000"),
        (["--steps", "9" * 30], "is more than 1000"),
        (["--steps", "-1"], "num_inference_steps=-1 has to be at least 1"),
        (["--seed", "18446744073709551616"], "seed=18446744073709551616 is not from"),
        (["--height", "160000"], "height=160000 is more than"),
        (["--num-frames", "80000001"], "tokens of video"),
        (["--guidance-scale", "nan"], "guidance_scale=nan is not a finite number"),
        (["--devices", "0"], "devices=0 is not from 1 to 64"),
        (["--devices", "cuda:0,cuda:1"], "sees no CUDA GPU"),
        (["--devices", "0,x"], "'x' is not a device"),
        (["--memory", "8 GiBB"], "memory='8 GiBB' is not a budget"),
        (["--memory", "9" * 400], "is not a budget"),
        (["--tile", "8", "8"], "goes with decode"),
        (["--checkpoint-every", "0"], "checkpoint_every=0"),
        (["--lora", "nowhere.safetensors"], "There is no LoRA at nowhere.safetensors"),
        (["--lora-weight", "nan"], "1 weights were given for 0 LoRAs"),
        (["--negative-prompt", "\udcff"], "The negative_prompt is not valid Unicode"),
        (["--save-crop", "{tmp}/crop"], "crop cannot be written as a picture (unknown ending '')"),
        (["--save-crop", "{tmp}/crop.pdb"], "cannot be written as a picture"),
        (["--save-crop", "{tmp}/no/such/\0/x.png"], "cannot be written"),
        (["--save-identity", "{tmp}/me.pt"], "me.pt does not end in .safetensors"),
        (["--save-identity", "{tmp}/" + "x" * 250 + ".safetensors"], "cannot be written (File name too long)"),
        (["--save-identity", "/dev/null/me.safetensors"], "cannot be written"),
        (["--checkpoint", "{tmp}"], "is a folder; give the file to write."),
        (["--save-crop", "{tmp}/crop.h5"], "cannot be written as a picture"),
        (["--device", "meta"], "device='meta' is not a device"),
        (["--checkpoint", "/dev/null"], "/dev/null is a device or a pipe, which would be replaced"),
        (["--checkpoint", "{tmp}/out.mp4"], "out.mp4 is the file of --output too"),
        (
            ["--checkpoint", "{tmp}/a/../me.safetensors", "--save-identity", "{tmp}/me.safetensors"],
            "--save-identity too",
        ),
        (["--device", "cuda:99999999999999999999"], "device="),
        (["--face", "²"], "face='²': give"),
        (["--face", "--5"], None),
        (["--face", "9" * 30], "was asked for; there are"),
        (["--face", "nan,0,1,1"], "face=(nan, 0.0, 1.0, 1.0): give"),
    ],
)
def test_generate_refuses_in_one_line(shallow_folder, tmp_path, capsys, monkeypatch, options, message, shallow):
    monkeypatch.setattr(ConsisID, "open", lambda *a, **k: opened(shallow, *a, **k))
    Image.fromarray(astronaut()[:330, 70:400]).save(tmp_path / "photo.png")
    random_identity(TINY).save(tmp_path / "person.safetensors")
    before = sorted(tmp_path.iterdir())
    photo = "photo.png" if "--face" in options else "person.safetensors"
    options = [option.replace("{tmp}", str(tmp_path)) for option in options]
    arguments = [str(shallow_folder), "--image", str(tmp_path / photo), "--prompt", "A man.", "--output",
                 str(tmp_path / "out.mp4"), *options]  # fmt: skip
    if message is None:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == REFUSED
        return
    assert cli.main(arguments) == REFUSED
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "warning:" not in line)
    assert message in line
    assert sorted(tmp_path.iterdir()) == before


def opened(engine, folder, device=None, memory=None, verify=False, devices=None, mesh=None):
    """The session's engine, checked as if it were opened with these."""
    from consisid.engine.memory import budget as budgets
    from consisid.engine.parallel.devices import list_devices
    from consisid.engine.util.device import check_device

    if device is not None:
        check_device(device)
    if devices is not None:
        list_devices(devices, "cpu")
    budgets.parse(memory, 2**34)
    engine.unload_lora_weights()
    return engine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--output", "{tmp}/x", "--device", "meta"], "device='meta' is not a device"),
        (["tiny", "--output", "/"], "output='/' is no name of a folder to make"),
        (["tiny", "--output", ""], "output='.' is no name of a folder to make"),
        (["tiny", "--output", "{tmp}/a\0b"], "cannot be written (embedded null byte)"),
        (["tiny", "--output", "{tmp}/" + "x" * 256], "cannot be written (File name too long)"),
        (["tiny", "--output", "/dev/null/x"], "cannot be written (Not a directory)"),
        (["tiny", "--output", "{tmp}/x", "--layers-per-shard", "0"], "layers_per_shard=0 is not from 1 to 1024"),
        (["tiny", "--dry-run", "--layers-per-shard", "-3"], "layers_per_shard=-3 is not from 1 to 1024"),
        (
            ["tiny", "--dry-run", "--memory", " AUTO", "--target", "sm_89", "--backend", "tensorrt-rtx"],
            "with --target give a number",
        ),
    ],
)
def test_build_refuses_in_one_line(tmp_path, capsys, arguments, message):
    arguments = [each.replace("{tmp}", str(tmp_path)) for each in arguments]
    backend = [] if "--backend" in arguments else ["--backend", "eager"]
    assert build_cli.main([*arguments, *backend]) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_save_identity(shallow_folder, tmp_path, capsys, monkeypatch):
    random_face().save(tmp_path / "face.png")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("consisid.engine.util.sealed.save_file", full)
    kept = tmp_path / "me.safetensors"
    arguments = [str(shallow_folder), "--image", str(tmp_path / "face.png"), "--aligned", "--prompt", "A man.",
                 "--output", str(tmp_path / "out.mp4"), "--save-identity", str(kept)]  # fmt: skip
    assert cli.main(arguments) == REFUSED
    said = capsys.readouterr().err
    assert f"error: {kept} cannot be written (No space left on device); check the free space" in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["face.png"]


def test_a_full_disk_under_checkpoint_is_a_warning(shallow, tmp_path, monkeypatch):
    """The video is worth more than the file that would help if it were lost."""
    options = {"seed": 1, "num_inference_steps": 2, "num_frames": 9, "output_type": "latent"}
    person = random_identity(TINY)
    expected = shallow.generate(person, "A man.", **options).latents

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("consisid.engine.util.sealed.save_file", full)
    kept = tmp_path / "steps.safetensors"
    with pytest.warns(UserWarning, match=r"steps.safetensors cannot be written \(No space left on device\).*goes on"):
        made = shallow.generate(person, "A man.", **options, checkpoint=kept, checkpoint_every=1)
    assert (made.latents == expected).all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("me.jpg", None, "me.jpg is a picture; --video takes a video, --image the photo"),
        ("me.png", None, "me.png is a picture; --video takes a video"),
        ("me.gif", None, "me.gif is a picture; --video takes a video"),
        ("me.avif", None, "me.avif is a picture; --video takes a video"),
        ("me.ico", None, "me.ico is a picture; --video takes a video"),
        ("me.pdf", None, "me.pdf is a picture; --video takes a video"),
        ("blue.mp4", 2, "blue.mp4: no face was found in any of 2 frames"),
        ("text.mp4", b"text", "text.mp4 cannot be read as a video"),
        ("empty.mp4", b"", "empty.mp4 cannot be read as a video"),
    ],
)
def test_bench_identity_takes_videos_with_a_face(shallow_folder, tmp_path, capsys, name, frames, message):
    photo, video = tmp_path / "photo.png", tmp_path / name
    Image.fromarray(astronaut()).save(photo)
    if isinstance(frames, int):
        Video(np.full((frames, 64, 64, 3), (30, 90, 160), np.uint8), 8, Stats()).save(video)
    elif frames is None:
        Image.fromarray(astronaut()).save(video)
    else:
        video.write_bytes(frames)
    arguments = ["--identity", "--image", str(photo), "--video", str(video), "--output", str(tmp_path / "out")]
    assert bench_cli.main([str(shallow_folder), *arguments]) == REFUSED
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_scripts_are_what_is_tested_here():
    text = (ROOT / "pyproject.toml").read_text()
    for name, module in MODULES.items():
        entry = f"{module.replace('.cli', '.entry')}:{name.partition('-')[2]}"
        assert f'{name} = "{entry}"' in text


def test_build_is_the_function_whoever_imports_its_module():
    for first in ("from consisid.export import build", "import consisid.export.build"):
        script = f"{first}; import consisid.export as package; from consisid.export import build"
        script += "; print(build is package.build, build.__module__, build.__name__)"
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert result.stdout.split() == ["True", "consisid.export.build", "build"]
    import consisid.export as package

    with pytest.raises(AttributeError, match="has no attribute 'built'"):
        _ = package.built


@pytest.mark.parametrize("name", MODULES)
def test_version(name, capsys):
    with pytest.raises(SystemExit) as ended:
        import_module(MODULES[name]).main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{name} {__version__}\n"


def test_sources_that_are_not_installed_have_no_version(monkeypatch, capsys):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("consisid.engine.util.cli.version", missing)
    with pytest.raises(SystemExit):
        build_cli.main(["--version"])
    assert capsys.readouterr().out == "consisid-build unknown\n"


def test_the_engine_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "consisid.engine", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: consisid-generate")
