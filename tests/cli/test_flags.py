"""The flags of the commands: their help, files that stand for them, and results as JSON."""

import argparse
import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import av
import numpy as np
import pytest
from support.engines import SHALLOW
from support.people import random_identity

from consisid.bench import cli as bench_cli
from consisid.engine import __version__, cli, main
from consisid.engine.backends import BACKENDS
from consisid.engine.errors import InputError
from consisid.engine.graphs.grouped import LAYERS
from consisid.engine.serve import cli as serve_cli
from consisid.engine.util.cli import REFUSED
from consisid.engine.util.video_files import read_settings
from consisid.engine.variants import VARIANTS
from consisid.export import cli as build_cli
from consisid.export.compile import AUTO

COMMANDS = {"build": build_cli, "generate": cli, "bench": bench_cli, "serve": serve_cli}
GIVEN = {
    "build": ["tiny", "--output", "engine"],
    "generate": ["engine", "--image", "me.png", "--prompt", "A man.", "--output", "out.mp4"],
    "bench": ["engine", "--output", "report"],
    "serve": ["engine"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_says_what_it_is_for(name, monkeypatch):
    shown = []
    monkeypatch.setattr(
        argparse.ArgumentParser, "add_argument", watched(argparse.ArgumentParser.add_argument, shown), raising=True
    )
    monkeypatch.setattr(argparse._ArgumentGroup, "add_argument", watched(argparse._ArgumentGroup.add_argument, shown))
    text = COMMANDS[name].parser().format_help()
    assert len(shown) > 10
    assert [action.dest for action in shown if not action.help] == []
    assert "example:\n  consisid-" in text
    assert max(map(len, text.splitlines())) <= 120


def watched(add, shown):
    def added(*given, **settings):
        action = add(*given, **settings)
        shown.append(action)
        return action

    return added


def test_the_help_of_build_names_what_there_is():
    text = " ".join(build_cli.parser().format_help().split()).replace("- ", "-")
    assert all(f"{name}" in text for name in (AUTO, *BACKENDS))
    assert "auto (default), eager, inductor, tensorrt or tensorrt-rtx" in text
    named = text.partition("CHECKPOINT is ")[2].split()[: len(VARIANTS) + 1]
    assert {word.strip(",") for word in named} == {*VARIANTS, "or"}
    assert f"(default {LAYERS})" in text


@pytest.mark.parametrize("command", ["consisid.engine.main", *(f"{module.__name__}" for module in COMMANDS.values())])
def test_help_does_not_wait_for_pytorch(command):
    script = f"import sys; from {command} import main as command\ntry:\n    command(['--help'])\n"
    script += "finally:\n    print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("False\n")


def parsed(name, arguments, monkeypatch):
    """The options that a command's work gets."""
    found = []
    module = COMMANDS[name]
    monkeypatch.setattr(
        module, "run", lambda command, work, *rest, **named: found.append(named.get("options") or rest[-1]) or 0
    )
    assert module.main(arguments) == 0
    return vars(found[0])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_equals_the_flags(name, tmp_path, monkeypatch):
    expected = parsed(name, GIVEN[name], monkeypatch)
    positional, *rest = GIVEN[name]
    file = tmp_path / "run.toml"
    flags = dict(zip(rest[::2], rest[1::2], strict=True))
    lines = [f"{flag[2:]} = {json.dumps(value)}" for flag, value in flags.items()]
    first = "checkpoint" if name == "build" else "engine"
    file.write_text("\n".join([f"{first} = {json.dumps(positional)}", *lines]) + "\n")
    found = parsed(name, ["--config", str(file)], monkeypatch)
    assert found.pop("config") == file
    expected.pop("config")
    assert found == expected


def test_the_line_goes_before_the_file_and_a_table_is_of_one_command(tmp_path, monkeypatch):
    file = tmp_path / "run.toml"
    file.write_text(
        'engine = "a"\nverbose = true\njson = false\n[generate]\nimage = ["x.png", "y.png"]\nprompt = "-A"\n'
        'output = "o.mp4"\nsteps = 7\ntile = [4, 6]\nguidance_scale = 1.5\n[build]\nbackend = "eager"\n'
    )
    found = parsed("generate", ["--config", str(file), "b", "--steps", "9"], monkeypatch)
    assert (found["engine"], found["steps"], found["prompt"], found["image"]) == ("b", 9, "-A", ["x.png", "y.png"])
    assert (found["tile"], found["guidance_scale"], found["verbose"], found["json"]) == ([4, 6], 1.5, True, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('stepz = 7\n', "there is no flag called 'stepz'"),
        ('steps = "many"\n', "argument --steps: invalid int value: 'many'"),
        ("steps = [\n", "Invalid value"),
        ("steps = " + "[" * 100_000 + "\n", "recursion"),
        ("steps = 2026-01-01\n", "neither text, number"),
        ("image = [[1]]\n", "neither text, number"),
        ("generate = 1\n", "generate is the name of a table"),
        ('prompt = "A man."\n', "the following arguments are required: engine, --image, --output"),
        ("x" * (2**20 + 1), "more than 1 MiB"),
        (b"prompt = '\xff'\n", "utf-8"),
    ],
)  # fmt: skip
def test_a_file_that_says_something_else(text, said, tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--config", str(file)])
    assert stopped.value.code == REFUSED
    *_, last = capsys.readouterr().err.splitlines()
    assert said in last
    assert last.startswith("consisid-generate: error: ")
    assert len(last) < 400


@pytest.mark.parametrize("path", ["nowhere.toml", "."])
def test_no_file(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        build_cli.main(["--config", path])
    assert f"argument --config: '{path}': " in capsys.readouterr().err


# --- a video that says how it was made


@pytest.fixture(scope="module")
def person_file(shallow, tmp_path_factory):
    return random_identity(shallow.variant).save(tmp_path_factory.mktemp("person") / "me.safetensors")


@pytest.fixture(scope="module")
def made(shallow_folder, person_file, tmp_path_factory):
    """An mp4 of two steps, with flags that are not the defaults."""
    file = tmp_path_factory.mktemp("made") / "a.mp4"
    given = ["--prompt", "A man – walks.", "--negative-prompt=-dark", "--steps", "2", "--guidance-scale", "3.5"]
    assert cli.main([str(shallow_folder), "--image", str(person_file), *given, "--output", str(file), "-q"]) == 0
    return file


def test_an_mp4_says_how_it_was_made(made, shallow_folder):
    found = read_settings(made)
    assert found["prompt"] == "A man – walks."
    assert found["negative_prompt"] == "-dark"
    assert (found["num_inference_steps"], found["guidance_scale"], found["num_frames"]) == (2, 3.5, 17)
    assert found["consisid"] == __version__
    assert found["approximations"] == found["loras"] == []
    assert found["folder"] == str(shallow_folder)
    assert 0 <= found["seed"] < 2**32


def apart(one, other):
    """The mean difference of two videos' pixels."""
    pictures = []
    for path in (one, other):
        with av.open(str(path)) as container:
            pictures.append(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))
    return float(np.abs(pictures[0].astype(int) - pictures[1]).mean())


def test_as_another_video_was_made(made, shallow_folder, tmp_path, capsys):
    again, other = tmp_path / "b.mp4", tmp_path / "c.mp4"
    assert cli.main([str(shallow_folder), "--like", str(made), "--output", str(again), "-q", "--json"]) == 0
    assert apart(again, made) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["settings"]["seed"] == read_settings(made)["seed"]
    assert said["output"] == str(again)
    assert said["stats"]["calls"]["head"] == 2
    assert cli.main([str(shallow_folder), "--like", str(made), "--output", str(other), "-q", "--seed", "7"]) == 0
    assert apart(other, made) > 10
    assert read_settings(other)["seed"] == 7


def test_approximations_are_said_and_repeated(made, shallow_folder, tmp_path, capsys):
    given = ["--cache", "99", "--guidance-window", "0:3", "--guidance-every", "2", "--steps", "4"]
    assert cli.main([str(shallow_folder), "--like", str(made), "--output", str(tmp_path / "a.mp4"), "-q", *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = ["step cache 99.0: 2 of 4 steps computed", "guidance in 3 of 4 steps"]
    assert lines[1:4] == [f"  approximation: {line}" for line in [*said, lines[3].partition(": ")[2]]]
    again = ["--like", str(tmp_path / "a.mp4"), "--output", str(tmp_path / "b.mp4"), "-q", "--json"]
    assert cli.main([str(shallow_folder), *again]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["approximations"] == read_settings(tmp_path / "a.mp4")["approximations"]
    assert settings["shortcuts"] == {"cache": 99.0, "guidance_window": [0, 3], "guidance_every": 2}


@pytest.mark.parametrize("given", [["--cache", "fast"], ["--guidance-window", "3"], ["--guidance-window", "5:1"]])
def test_what_is_no_approximation(given, made, shallow_folder, tmp_path, capsys):
    assert (
        cli.main([str(shallow_folder), "--like", str(made), "--output", str(tmp_path / "b.mp4"), "-q", *given])
        == REFUSED
    )
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_by_another_engine(made, shallow_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "consisid.engine.util.video_files.read_settings",
        lambda file: {**read_settings(file), "engine": {"variant": "tiny", "key": "0"}},
    )
    assert cli.main([str(shallow_folder), "--like", str(made), "--output", str(tmp_path / "b.mp4"), "-q"]) == 0
    assert f"{made} was made by another engine" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_like_what_says_nothing(content, tmp_path, capsys, plain_video):
    file = tmp_path / "x.mp4"
    file.write_bytes(plain_video if content is None else content)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--like", str(file), "--output", str(tmp_path / "b.mp4")])
    assert stopped.value.code == REFUSED
    assert "argument --like: " in capsys.readouterr().err


@pytest.fixture
def plain_video(tmp_path):
    """The bytes of an mp4 without settings."""
    from fractions import Fraction

    from consisid.engine.util import mp4

    mp4.write(tmp_path / "plain.mp4", [np.zeros((64, 64, 3), np.uint8)], Fraction(8))
    return (tmp_path / "plain.mp4").read_bytes()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": None}, "its seed cannot be given"), ({"prompt": None}, "its prompt cannot be given"),
        ({"videos": 2}, "its videos cannot be given"), ({"eta": 0.5}, "its eta cannot"),
        ({"image": ["x", "--save-crop=/tmp/x.png"]}, "would be read as a flag"), ({"consisid": None}, ""),
        ({"image": [[1]]}, "neither text"), ({"use_dynamic_cfg": 7}, "was not written by consisid"),
    ],
)  # fmt: skip
def test_what_a_video_cannot_ask_for(changed, said, made, shallow_folder, tmp_path, capsys, monkeypatch):
    """Its file may be anybody's: no engine of it is opened, and no flag hides in a value."""
    found = read_settings(made) | changed
    monkeypatch.setattr("consisid.engine.util.mp4.read_comment", lambda file: json.dumps(found))
    if said:
        with pytest.raises(SystemExit):
            cli.main([str(shallow_folder), "--like", str(made), "--output", str(tmp_path / "b.mp4")])
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["--like", str(made), "--output", str(tmp_path / "b.mp4")])
    assert list(tmp_path.iterdir()) == []


def test_flags_are_not_shortened(tmp_path, capsys):
    (tmp_path / "run.toml").write_text("like = 'a.mp4'\n")
    for words, said in [
        (["--conf", "x"], "unrecognized arguments"),
        (["--config", str(tmp_path / "run.toml")], "'like'"),
    ]:
        with pytest.raises(SystemExit):
            cli.main([*GIVEN["generate"], *words])
        assert said in capsys.readouterr().err


# --- results as JSON


def test_a_plan_and_a_folder_as_json(shallow_folder, capsys):
    assert (
        build_cli.main(["preview", "--random-weights", "--dry-run", "--memory", "8GiB", "--device", "cpu", "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["variant"], found["num_frames"]) == ("preview", 49)
    assert found["memory"]["peak"] <= found["memory"]["budget"] == 8 * 2**30
    assert found["graphs"]["block"]["layers"] == 41
    assert build_cli.main(["--list", str(shallow_folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(shallow_folder)
    assert set(found["graphs"]["block"]) >= {"backend", "sha256", "seconds"}


# --- one command with the others as its first word


def test_one_command_for_all(monkeypatch, capsys):
    called = []
    point = EntryPoint("consisid-build", "consisid.export.entry:build", "console_scripts")
    monkeypatch.setattr(main, "entry_points", lambda **which: [point] if which["name"] == "consisid-build" else [])
    monkeypatch.setattr(build_cli, "main", lambda words: called.append(words) or 3)
    assert main.main(["build", "tiny", "--output", "x"]) == 3
    assert called == [["tiny", "--output", "x"]]
    assert main.main(["generate"]) == 1
    assert capsys.readouterr().err == "consisid: error: consisid-generate is not installed; pip install consisid.\n"


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["--help"], 0), ([], 2), (["bake"], 2)])
def test_what_is_no_command(words, code, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(words)
    assert stopped.value.code == code
    out, err = capsys.readouterr()
    assert not code or "usage: consisid" in err
    assert words != ["--version"] or out == f"consisid {__version__}\n"
    assert words != ["--help"] or all(f"    {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("shell", main.SHELLS)
def test_completion(shell, capsys):
    """With the entry points of this installation."""
    assert main.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("guidance-scale", "layers-per-shard", "no-peers", "generate"))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=60)


def test_the_best_of_some_seeds(shallow_folder, tmp_path, capsys):
    person, output = tmp_path / "me.safetensors", tmp_path / "best.mp4"
    random_identity(SHALLOW).save(person)
    given = [str(shallow_folder), "--image", str(person), "--prompt", "A man.", "--output", str(output), "-q"]
    sizes = ["--height", "96", "--width", "144", "--num-frames", "9", "--steps", "1", "--seed", "5"]
    assert cli.main([*given, *sizes, "--best-of", "2"]) == 0
    said = capsys.readouterr().out
    assert all(f"seed {seed}: no face" in said for seed in (5, 6))
    assert read_settings(output)["seed"] == 5
    for flags, message in (
        (["--best-of", "0"], "--best-of 0 has to be from 1 to 64"),
        (["--good-enough", "0.5"], "--good-enough ends --best-of early"),
        (["--best-of", "2", "--checkpoint", str(tmp_path / "steps")], "A checkpoint holds the steps of one video"),
    ):
        assert cli.main([*given, *sizes, *flags]) == 2
        assert message in capsys.readouterr().err


def test_verify_reaches_the_engine(monkeypatch, tmp_path):
    asked = []

    def opened(*_, **named):
        asked.append(named["verify"])
        raise InputError("no further")

    monkeypatch.setattr("consisid.engine.ConsisID.open", opened)
    for flags in ([], ["--verify"]):
        cli.main(["engine", "--image", "a.png", "--prompt", "A.", "--output", str(tmp_path / "a.mp4"), *flags])
    assert asked == [False, True]


@pytest.mark.parametrize(("loud", "stages", "plan"), [([], True, False), (["-q"], False, False), (["-v"], True, True)])
def test_how_much_is_said(loud, stages, plan, shallow_folder, tmp_path, capsys):
    person = tmp_path / "me.safetensors"
    random_identity(SHALLOW).save(person)
    given = ["--image", str(person), "--prompt", "A.", "--steps", "1", "--memory", "1GiB", "--num-frames", "9"]
    assert cli.main([str(shallow_folder), *given, "--output", str(tmp_path / "a.mp4"), *loud]) == 0
    said = capsys.readouterr().err
    assert [f"consisid-generate: {name}: " in said for name in ("text", "denoise", "decode")] == [stages] * 3
    assert ("predicted peak" in said) is plan


def test_a_file_of_python_wants_the_photo(shallow, shallow_folder, tmp_path, capsys):
    video = shallow.generate(random_identity(shallow.variant), "A man.", seed=1, num_inference_steps=1, num_frames=9)
    file = video.save(tmp_path / "a.mp4")
    with pytest.raises(SystemExit):
        cli.main([str(shallow_folder), "--like", str(file), "--output", str(tmp_path / "b.mp4")])
    assert "the following arguments are required: --image" in capsys.readouterr().err


def test_frames_in_between_and_larger(made, shallow_folder, tmp_path):
    file, more = tmp_path / "b.mp4", ["--fps", "16", "--interpolate", "--upscale", "2"]
    assert cli.main([str(shallow_folder), "--like", str(made), "--output", str(file), "-q", *more]) == 0
    with av.open(str(file)) as found:
        stream = found.streams.video[0]
        assert (sum(1 for _ in found.decode(video=0)), stream.average_rate) == (33, 16)
        assert (stream.width, stream.height) == (288, 192)


def test_a_report_counts_three_runs_of_ten_steps(monkeypatch):
    found = parsed("bench", GIVEN["bench"], monkeypatch)
    assert (found["runs"], found["steps"]) == (3, 10)
