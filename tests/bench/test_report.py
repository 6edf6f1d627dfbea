"""consisid-bench on a CPU: the report is complete, valid, readable, and says what it could not measure."""

import base64
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from consisid.bench.cli import main
from consisid.bench.core import environment, weights
from consisid.bench.core.ablation import Ablated, ablations
from consisid.bench.core.baselines import BASELINES, BaselineError, Diffusers, open_pipeline
from consisid.bench.core.inputs import identity
from consisid.bench.report import measure, options, parity
from consisid.bench.report.memory import PLANNED
from consisid.bench.report.render import summary
from consisid.engine import ConsisID
from consisid.engine.errors import ConsisIDError, NumericalError

SCHEMA = json.loads((Path(measure.__file__).parents[1] / "schema.json").read_text())


def test_report_follows_its_schema(values):
    jsonschema.validate(values, SCHEMA)


@pytest.mark.parametrize(
    "file", sorted(Path(measure.__file__).parents[1].glob("reports/cpu-tiny*.json")), ids=lambda file: file.stem
)
def test_committed_reports_follow_it_too(file):
    found = json.loads(file.read_text())
    if "schema" in found:  # others are tables of their own
        jsonschema.validate(found, SCHEMA)
        assert "-dirty" not in found["made"]["commit"]


def test_the_readme_has_the_row_of_each_report():
    """Copied from the report, not typed."""
    bench = Path(__file__).parents[2] / "bench"
    readme = (bench.parent / "README.md").read_text()
    found = [json.loads(file.read_text()) for file in bench.glob("reports/*.json")]
    reports = [values for values in found if "schema" in values]  # others are tables of their own
    assert reports
    for values in reports:
        _, heading, (row,) = summary(values)
        for cells in (heading, row):
            assert f"| {' | '.join(cells)} |\n" in readme


def test_the_schema_refuses_an_incomplete_row(values):
    row = {**values["rows"][0]}
    del row["made"]
    with pytest.raises(jsonschema.ValidationError, match="made"):
        jsonschema.validate({**values, "rows": [row]}, SCHEMA)


def test_report_is_complete(values):
    sections = {row["section"] for row in values["rows"]}
    assert sections == {"video", "stage", "step", "latency", "machine", "work"}  # memory of each: on a GPU only
    assert [rung["name"] for rung in values["waterfall"]] == [
        "diffusers", "ours without hoisting", "ours, face once", "ours, face and modulation once", "ours"
    ]  # fmt: skip
    assert {row["name"] for row in values["rows"] if row["section"] == "video"} == {
        "diffusers", "diffusers, slicing, tiling", "ours", "ours, all turns"
    }  # fmt: skip
    assert len(values["parity"]["ours"]["psnr_per_step_db"]) == 2
    # Rounding in float32 is 2^-24, -144 dB, and a step adds it up.
    assert all(100 < db < 200 for db in values["parity"]["ours"]["psnr_per_step_db"])
    assert {row["name"] for row in values["rows"] if row["section"] == "latency"} == {
        "open", "first generate() after open", "warm generate()", "of which outside the networks", "between two steps",
        "another person", "a photo seen before", "another prompt",
    }  # fmt: skip
    assert [row["name"] for row in values["peers"]] == [peer.name for peer in BASELINES]
    assert [row["stated_gb"] for row in values["peers"] if row["stated_gb"]] == [
        [37, 44], [22, 25], [16, 22], [16, 22], [5, 7]
    ]  # fmt: skip


def test_each_stated_budget_has_our_mode_beside_it(values):
    rows = [row for row in values["peers"] if row["stated_gb"]]
    budgets = [row["within"]["budget_gb"] for row in rows]
    assert budgets == sorted(budgets, reverse=True)
    assert len(set(budgets)) == 4  # 16/22 is stated twice
    assert all(row["within"]["scaled"] for row in rows)
    assert all(row["within"]["predicted_gb"] <= row["within"]["budget_gb"] for row in rows)
    assert [rows[0]["within"]["mode"], rows[-1]["within"]["mode"]] == ["resident", "stages hand over"]
    assert all(row["within"] is None for row in values["peers"] if not row["stated_gb"])


def test_memory_stands_against_the_plan(values, written):
    memory = values["memory"]
    assert memory["plan"]["budget"] is None
    assert list(memory["plan"]["stages"]) == list(memory["stages"]) == list(PLANNED)
    assert 0 < max(memory["plan"]["stages"].values()) <= memory["plan"]["peak"] < 2**30
    assert memory["peaks"]["decode"] > 0
    assert "Memory: no budget, the plan keeps resident" in (written / "report.md").read_text()


def test_it_says_what_is_measured_and_not_the_stages_of_each_video(written):
    said = written.with_name("said").read_text()
    assert "consisid-bench: measuring: " in said
    assert not re.search(r"^consisid-bench: (identify|text|prepare|denoise|decode): ", said, re.MULTILINE), said


def test_a_budget_reaches_the_engine(mini_folder, tmp_path, capsys):
    assert main([str(mini_folder), "--output", str(tmp_path / "r"), "--memory", "much"]) == 2
    assert "memory='much' is not a budget" in capsys.readouterr().err


def test_what_a_cpu_cannot_measure_is_said(values, written):
    missing = {entry["what"] for entry in values["not_measured"]}
    assert "diffusers, group offload on a stream" in missing
    assert any(what.startswith("energy") for what in missing)
    text = (written / "report.md").read_text()
    assert all(f"| {what} | " in text for what in missing)


def raising(error):
    def work(*_, **__):
        raise error

    return work


@pytest.mark.parametrize("kind", options.MISSING)
def test_what_a_peer_or_the_memory_refuses_is_a_line(kind):
    b = options.Missing()
    assert b.attempt("a peer", raising(kind("no\nmore"))) is None
    # An error of this engine is one line whatever it is given; of others the first line is taken.
    assert b.lines[0]["because"].endswith("no more" if issubclass(kind, ConsisIDError) else "no")


@pytest.mark.parametrize("error", [RuntimeError("ours"), ValueError("ours"), NumericalError("ours")])
def test_an_error_of_our_own_ends_the_command(error):
    b = options.Missing()
    with pytest.raises(type(error), match="ours"):
        b.attempt("a peer", raising(error))


def test_whatever_diffusers_raises_is_its_answer(monkeypatch, random_mini):
    monkeypatch.setattr("diffusers.ConsisIDPipeline.__init__", raising(KeyError("no such part")))
    with pytest.raises(BaselineError, match="KeyError: 'no such part'"):
        open_pipeline(random_mini, torch.float32)


def test_parity_that_does_not_hold_fails_the_command_after_the_report(values, monkeypatch, tmp_path, capsys):
    wrong = {**values["parity"], "verdict": {"rule": "a rule", "found": 2.0, "allowed": 1.0, "holds": False}}
    monkeypatch.setattr(measure, "measure_engine", lambda _: {**values, "parity": wrong})
    assert main(["engine", "--output", str(tmp_path)]) == 2
    assert "2.00e+00, more than 1.00e+00 (a rule)" in capsys.readouterr().err
    assert "does not hold" in (tmp_path / "report.md").read_text()


def test_float32_parity_is_exact(values):
    assert values["parity"]["verdict"]["holds"]
    assert values["parity"]["verdict"]["allowed"] == 1e-4


def test_a_folder_with_random_weights(random_mini):
    """It is called random; diffusers gets the same tensors and tokens; and the contract's rule holds in bfloat16.

    Over 16 noises the ratio of the errors was 0.98 on average, 1.03 at most: 1.1 leaves room for other roundings.
    """
    assert measure.describe(random_mini)["random_weights"]
    found = parity.measure(random_mini, 2)
    assert found["dtype"] == "bfloat16"
    assert found["videos"] == 3  # one has 1,152 latents
    assert found["diffusers"]["relative_error_per_step"][-1] > 0
    assert found["verdict"]["holds"], found["verdict"]
    assert found["verdict"]["allowed"] == 1.1 * found["diffusers"]["relative_error_per_step"][-1]
    theirs = Diffusers(random_mini, identity(random_mini.variant), 2, BASELINES[0])
    with torch.no_grad():
        prompt, negative = theirs.embeds("A man.")
        ours = random_mini.text_encoder(random_mini.networks(), ["A man.", ""])
    assert (torch.cat((prompt, negative)) - ours).norm() < 0.05 * ours.norm()
    assert len(theirs(1).steps) == 1  # the first of two has no mark before it


def test_a_backend_belongs_to_random_weights(mini_folder, tmp_path, capsys):
    assert main([str(mini_folder), "--output", str(tmp_path / "r"), "--backend", "inductor"]) == 2
    assert "belongs to --random-weights" in capsys.readouterr().err


def test_random_weights_are_compiled_by_the_backend(monkeypatch):
    asked = []
    monkeypatch.setattr(weights, "build", lambda *a, **k: asked.append(k["backend"]))
    with options.folder_of(options.Options("tiny", random_weights=True, backend="auto"), torch.device("cpu")):
        assert asked == ["auto"]


def test_random_weights_by_the_name_of_a_variant():
    with options.folder_of(options.Options("tiny", random_weights=True), torch.device("cpu")) as folder:
        assert measure.describe(ConsisID.open(folder)) == {
            "variant": "tiny", "shape": "144x96, 17 frames", "dtype": "float32", "backend": "eager",
            "random_weights": True,
        }  # fmt: skip
    assert not folder.exists()


def test_plots_are_pictures(written):
    page = (written / "report.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 3
    assert not re.search(r'(?:href|src)="(?!data:)', page), "the page needs another file"
    for source in sources:
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert data.startswith(b"\x89PNG")
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert min(pixels.shape) > 150
        assert 0.001 < (pixels < 200).mean() < 0.6, "nothing is drawn, or everything is dark"


def test_no_path_of_this_machine_is_in_the_report(written):
    for file in written.iterdir():
        text = re.sub(r"base64,[^\"]*", "", file.read_text())
        assert "/tmp" not in text
        assert str(Path.home()) not in text


def test_command_is_shown_relative(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(environment.SETTINGS)]:
        monkeypatch.delenv(name)
    given = ["/somewhere/bin/consisid-bench", str(tmp_path / "tiny"), "--output", "/elsewhere/report"]
    shown = environment.command(given)
    assert shown == "consisid-bench tiny --output .../report"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environment.command(given) == "OMP_NUM_THREADS=1 consisid-bench tiny --output .../report"


def test_without_matplotlib_one_sentence(mini_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([str(mini_folder), "--output", str(tmp_path / "r")]) == 2
    assert "pip install 'consisid[bench]'" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_on_every_rung_the_video_is_the_same(tiny):
    person = identity(tiny.variant)
    embeds = tiny.text_encoder(tiny.networks(), ["", "A man."])
    ours = tiny.generate(person, "A man.", seed=5, num_inference_steps=2, output_type="latent").latents
    for rung in ablations(tiny, person, 2).values():
        assert (ours - rung.latents(embeds, 5, [])[0]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "in_loop"),
    [("ours, face once", {"modulation", "inputs"}), ("ours, face and modulation once", {"inputs"})],
)
def test_a_rung_computes_once_what_it_says(tiny, name, in_loop):
    networks, person = tiny.networks(), identity(tiny.variant)
    embeds = tiny.text_encoder(networks, ["", "A man."])
    tiny.conditioner.images(networks, person, tiny.shape.height, tiny.shape.width)
    before = networks.calls.copy()
    ablations(tiny, person, 3)[name].latents(embeds, 0, [])
    calls = networks.calls - before
    layers = tiny.variant.transformer.num_layers
    assert calls["face_extract"] == 1
    assert calls["modulation"] == layers * (3 if "modulation" in in_loop else 1)
    assert calls["text_project"] == calls["image_embed"] == (3 if "inputs" in in_loop else 1)


def test_a_compiled_engine_has_a_rung_for_compiling(monkeypatch, tiny):
    """Its graphs operator by operator; an eager engine has no such rung."""
    person = identity(tiny.variant)
    assert "ours uncompiled, without hoisting" not in ablations(tiny, person, 2)
    entries = {name: replace(entry, file="block.pt2") for name, entry in tiny.manifest.graphs.items()}
    monkeypatch.setattr(tiny, "manifest", replace(tiny.manifest, graphs=entries))
    found = ablations(tiny, person, 2)
    assert next(iter(found)) == "ours uncompiled, without hoisting"
    embeds = tiny.text_encoder(tiny.networks(), ["", "A man."])
    first, second = list(found.values())[:2]
    assert first.networks is not second.networks
    assert (first.latents(embeds, 5, []) == second.latents(embeds, 5, [])).all()


def test_without_hoisting_everything_is_computed_each_step(tiny):
    networks, person = tiny.networks(), identity(tiny.variant)
    embeds = tiny.text_encoder(networks, ["", "A man."])
    before = networks.calls.copy()
    Ablated(tiny, person, 3).latents(embeds, 0, [])
    calls = networks.calls - before
    assert [calls[n] for n in ("text_project", "image_embed", "time_embed", "face_extract")][:3] == [3, 3, 3]
    assert calls["face_extract"] in (3, 4)  # and once for the image's moments, which belong to no step
    assert calls["modulation"] == 3 * tiny.variant.transformer.num_layers
