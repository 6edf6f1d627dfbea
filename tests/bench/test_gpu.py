"""The script for a lent GPU: every phase at a small size on a CPU, every graph at full size without data."""

import json
import re
import time
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from consisid.bench.core import flops
from consisid.bench.core.weights import RandomWeights
from consisid.bench.gpu import runner
from consisid.bench.gpu.cases import PHASES, Case, Context, Unavailable, Work, cases
from consisid.bench.gpu.sheet import LATER
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY

CPU = torch.device("cpu")


@pytest.mark.parametrize("phase", PHASES)
def test_phase_on_a_cpu(phase, mini, tmp_path):
    sheet = runner.run_phase(phase, Context.of(mini, CPU, steps=2), tmp_path, again=False, budget=0.01, limit=600)
    rows = sheet.values["rows"]
    assert sheet.finished
    assert json.loads((tmp_path / f"{phase}.json").read_text()) == sheet.values
    # What did not run needs a GPU, and nothing else.
    reasons = [row["unmeasured"] for row in rows if "unmeasured" in row]
    assert all(re.search(r"needs a CUDA GPU|takes minutes on a CPU", reason) for reason in reasons), reasons
    measured = [row for row in rows if "seconds" in row]
    assert measured
    assert all(row["error"] is not None or row["note"] for row in measured)


@pytest.mark.parametrize("phase", PHASES)
def test_phase_at_full_size_without_data(phase, monkeypatch):
    """PREVIEW, 17,776 tokens, on the meta device: every row that a GPU will run is built and called once.

    Four of its 42 equal blocks, and of the decode two of its 6 chunks: they are one graph each. Engines, which make
    whole videos, are on no device without data.
    """
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda _: torch.tensor(True))  # what has no data cannot be asked
    few = replace(PREVIEW, transformer=replace(PREVIEW.transformer, num_layers=4))
    few = replace(few, num_frames=17) if phase == "decode" else few
    context = Context.of(few, torch.device("meta"), torch.bfloat16, steps=2)
    assert context.tokens == (6976 if phase == "decode" else 17776)
    built, reasons = 0, []
    for case in cases(phase, context):
        try:
            with torch.no_grad():
                case.make().run()
            built += 1
        except Unavailable as reason:
            reasons.append(str(reason))
    assert built >= {"trt": 1, "stream": 0, "e2e": 0, "step": 0}.get(phase, 2)
    known = "an engine of|CUDA driver" if phase == "trt" else "cannot be imported|needs a device with data"
    assert all(re.search(known, reason) for reason in reasons), reasons


def test_what_the_script_uses_of_torch_is_there():
    """Names looked up in the torch that runs this test; the script is for 2.11 to 2.13."""
    found = set()
    for file in Path(runner.__file__).parents[1].rglob("*.py"):
        found |= set(re.findall(r"\btorch(?:\.[A-Za-z_]\w*)+", file.read_text()))
    assert len(found) > 30
    for name in sorted(found):
        for end in (dot.start() for dot in re.finditer(r"\.|$", name)):
            with suppress(ImportError):
                import_module(name[:end])
        attrgetter(name.removeprefix("torch."))(torch)


def test_a_finished_phase_is_skipped_unless_again(mini, tmp_path, monkeypatch):
    made = []

    def rows(phase, context):
        for name in "ab":
            yield Case(name, lambda n=name: made.append(n) or Work(lambda: None, note="nothing"))

    monkeypatch.setattr(runner, "cases", rows)
    options = {"budget": 0.001, "limit": 60}
    context = Context.of(mini, CPU)
    for again in (False, False, True):
        runner.run_phase("text", context, tmp_path, again=again, **options)
    assert made == ["a", "b", "a", "b"]


def test_rows_by_parts_of_their_names(mini, tmp_path, monkeypatch):
    """The others are left as they are, measured or open."""
    made = []

    def rows(phase, context):
        for name in ("first one", "second one", "third"):
            yield Case(name, lambda n=name: made.append(n) or Work(lambda: None, note="nothing"))

    monkeypatch.setattr(runner, "cases", rows)
    context, options = Context.of(mini, CPU), {"budget": 0.001, "limit": 60}
    some = runner.run_phase("text", context, tmp_path, again=False, only=["first", "ir"], **options)
    assert made == ["first one", "third"]
    assert not some.finished
    assert runner.run_phase("text", context, tmp_path, again=False, **options).finished
    anew = runner.run_phase("text", context, tmp_path, again=True, only=["third"], **options)
    assert made == ["first one", "third", "second one", "third"]
    assert sorted(row["name"] for row in anew.values["rows"]) == ["first one", "second one", "third"]


def test_an_interrupted_phase_goes_on_where_it_stopped(mini, tmp_path, monkeypatch):
    made = []

    def rows(phase, context):
        yield Case("a", lambda: made.append("a") or Work(lambda: None))
        if made.count("stop") == 0:
            made.append("stop")
            raise KeyboardInterrupt
        yield Case("b", lambda: made.append("b") or Work(lambda: None))

    monkeypatch.setattr(runner, "cases", rows)
    context, options = Context.of(mini, CPU), {"again": False, "budget": 0.001, "limit": 60}
    with pytest.raises(KeyboardInterrupt):
        runner.run_phase("text", context, tmp_path, **options)
    assert [row["name"] for row in json.loads((tmp_path / "text.json").read_text())["rows"]] == ["a"]
    assert runner.run_phase("text", context, tmp_path, **options).finished
    assert made == ["a", "stop", "b"]


def test_rows_left_for_lack_of_time_are_measured_by_the_next_call(mini, tmp_path):
    context, options = Context.of(mini, CPU), {"again": False, "budget": 0.001}
    late = runner.run_phase("text", context, tmp_path, limit=-1, **options)
    assert not late.finished
    assert {row["unmeasured"] for row in late.values["rows"]} == {LATER}
    assert all(
        "seconds" in row for row in runner.run_phase("text", context, tmp_path, limit=60, **options).values["rows"]
    )


def one_row(make, **options):
    return runner.measure(Case("x", make, **options), Context.of(TINY, CPU), 1)


@pytest.mark.parametrize(("foreign", "key"), [(False, "failed"), (True, "unmeasured")])
@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_wrong_result_is_not_timed(error, foreign, key):
    timed = []
    row = one_row(lambda: Work(lambda: timed.append(1), error=error, allowed=0.1), foreign=foreign)
    assert row[key].startswith("wrong")
    assert not timed


@pytest.mark.parametrize(("foreign", "key"), [(False, "failed"), (True, "unmeasured")])
def test_a_row_that_takes_too_long_is_given_up(foreign, key):
    def compiler_that_tries_again() -> Work:
        for _ in range(3):
            with suppress(Exception):
                time.sleep(1)
        return Work(lambda: None)

    assert one_row(compiler_that_tries_again, foreign=foreign, limit=0.2)[key].startswith("OverdueError")
    time.sleep(0.3)  # the alarm is off again


def test_a_row_that_is_run_once_is_not_warmed_up():
    calls = []
    assert one_row(lambda: Work(lambda: calls.append(1)), once=True)["count"] == len(calls) == 1


def test_without_checks_a_wrong_result_is_timed_and_its_error_stands_there():
    context = Context.of(TINY, CPU, checked=False)
    row = runner.measure(Case("x", lambda: Work(lambda: None, error=9.0, allowed=0.1)), context, 0.01)
    assert row["error"] == 9.0
    assert "seconds" in row


def raising(error):
    def make() -> Work:
        raise error

    return make


def test_what_others_raise_stands_in_their_row():
    row = one_row(raising(RuntimeError("no kernel\nand more")), foreign=True)
    assert row["unmeasured"] == "RuntimeError: no kernel"
    assert "out of memory" in one_row(raising(torch.OutOfMemoryError("2 GiB")))["unmeasured"]
    absent = one_row(raising(ModuleNotFoundError("gone", name="not_there")))
    assert absent["unmeasured"] == "not_there is not installed"


def test_an_error_of_our_own_fails_the_command_after_the_other_rows(mini, tmp_path, monkeypatch, capsys):
    def rows(phase, context):
        yield Case("broken", raising(ValueError("ours")))
        yield Case("fine", lambda: Work(lambda: None, note="nothing"))

    monkeypatch.setattr(runner, "cases", rows)
    arguments = ["--phase", "text", "--variant", "tiny", "--device", "cpu", "--budget", "0.001"]
    assert runner.main([*arguments, "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "1 row(s) failed, the first in phase text, broken: ValueError: ours" in said
    assert "Traceback" in said
    values = json.loads((tmp_path / "text.json").read_text())
    assert not values["finished"]
    assert "seconds" in values["rows"][1]
    monkeypatch.setattr(runner, "cases", lambda *_: [Case("broken", lambda: Work(lambda: None, note="mended"))])
    assert runner.main([*arguments, "--output", str(tmp_path)]) == 0  # the row that failed is measured again


@pytest.mark.parametrize("key", ["device", "torch", "triton", "commit", "sources"])
def test_a_row_of_another_state_is_measured_anew(key, mini, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(runner, "cases", lambda *_: [Case("a", lambda: made.append("a") or Work(lambda: None))])
    options = {"again": False, "budget": 0.001, "limit": 60}
    sheet = runner.run_phase("text", Context.of(mini, CPU), tmp_path, **options)
    assert set(sheet.values["rows"][0]["made"]) >= {"device", "torch", "triton", "commit", "sources"}
    values = json.loads((tmp_path / "text.json").read_text())
    values["rows"][0]["made"][key] = "another"
    (tmp_path / "text.json").write_text(json.dumps(values))
    assert runner.run_phase("text", Context.of(mini, CPU), tmp_path, **options).finished
    assert made == ["a", "a"]


def test_a_row_that_the_phase_has_no_time_for_is_left_for_the_next_call(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEAST", 0.2)
    makes = [lambda: time.sleep(5), lambda: Work(lambda: None)]
    monkeypatch.setattr(runner, "cases", lambda *_: [Case("a", lambda: makes.pop(0)() or makes[0]())])
    options = {"again": False, "budget": 0.001}
    left = runner.run_phase("text", Context.of(mini, CPU), tmp_path, limit=0.1, **options)
    assert [row["unmeasured"] for row in left.rows] == [LATER]
    makes.insert(0, makes[0])
    assert runner.run_phase("text", Context.of(mini, CPU), tmp_path, limit=60, **options).finished


def test_the_table_comes_last_and_shows_shares(tmp_path, capsys):
    arguments = ["--phase", "ceilings", "--variant", "tiny", "--device", "cpu", "--budget", "0.01"]
    assert runner.main([*arguments, "--output", str(tmp_path)]) == 0
    table = capsys.readouterr().out.rpartition("\n\n")[2].splitlines()
    assert table[1] == "ceilings"
    assert any("100%" in line for line in table)


def test_counted_work_is_that_of_the_model():
    """FACTS.md: 163.1, 169.1 and 9.4 TFLOP for a sample and step; folded, the face is a quarter of it."""
    shape = VideoShape.of(PREVIEW, None, None, None)
    whole = flops.step_cost(PREVIEW, shape, folded=False, whole=True)
    assert [round(x / 1e12, 1) for x in (whole.attention, whole.linears, whole.face)] == [163.1, 169.1, 9.4]
    assert flops.step_cost(PREVIEW, shape).face == pytest.approx(whole.face / 4, rel=0.02)
    hoisted = ("modulation", "out_modulation", "face_extract", "face_fold")
    assert flops.weight_bytes(PREVIEW, shape, flops.STEP_GRAPHS + hoisted, 2) == pytest.approx(12.3e9, rel=0.01)


@pytest.mark.parametrize("variant", [TINY, PREVIEW])
def test_counted_work_is_what_pytorch_counts(variant):
    shape = VideoShape.of(variant, None, None, None)
    t = variant.transformer
    counted = flops.graph_flops(variant, shape, "last_block") + (t.num_layers - 1) * flops.graph_flops(
        variant, shape, "block"
    )
    expected = flops.step_cost(variant, shape)
    assert counted == pytest.approx(expected.attention + expected.linears, rel=1e-6)


def test_random_weights_do_not_depend_on_the_order_of_asking(mini):
    shape = VideoShape.of(mini, None, None, None)
    one, two = (RandomWeights(mini, shape, CPU, torch.float32) for _ in range(2))
    name = "transformer_blocks.1.attn1.to_k.weight"
    two.tensor("transformer", "transformer_blocks.0.attn1.to_k.weight")
    assert torch.equal(one.tensor("transformer", name), two.tensor("transformer", name))
    other = RandomWeights(mini, shape, CPU, torch.float32, seed=1)
    assert not torch.equal(one.tensor("transformer", name), other.tensor("transformer", name))
    std = one.tensor("transformer", name).std() * mini.transformer.inner_dim**0.5
    assert 0.9 < std < 1.1
