"""The script for a lent GPU: every phase at a small size on a CPU, every graph at full size without data."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from consisid.bench import cost, gpu
from consisid.bench.phases import PHASES, Case, Context, Unavailable, Work, cases, stream
from consisid.bench.weights import RandomWeights
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY

CPU = torch.device("cpu")


@pytest.mark.parametrize("phase", PHASES)
def test_phase_on_a_cpu(phase, mini, tmp_path):
    sheet = gpu.run_phase(phase, Context.of(mini, CPU, steps=2), tmp_path, again=False, budget=0.01, limit=600)
    rows = sheet.values["rows"]
    assert sheet.finished
    assert json.loads((tmp_path / f"{phase}.json").read_text()) == sheet.values
    # What did not run needs a GPU, and nothing else.
    reasons = [row["unmeasured"] for row in rows if "unmeasured" in row]
    assert all(re.search(r"needs a CUDA GPU|takes minutes on a CPU|must match", reason) for reason in reasons), reasons
    measured = [row for row in rows if "seconds" in row]
    assert measured
    assert all(row["error"] is not None or row["note"] for row in measured)


@pytest.mark.parametrize("phase", ["ceilings", "attention", "block", "step", "stream", "decode", "text"])
def test_phase_at_full_size_without_data(phase):
    """PREVIEW, 17,776 tokens, on the meta device: every row that a GPU will run is built and called once.

    Four of its 42 equal blocks: they are one graph.
    """
    few = replace(PREVIEW, transformer=replace(PREVIEW.transformer, num_layers=4))
    context = Context.of(few, torch.device("meta"), torch.bfloat16)
    assert context.tokens == 17776
    built, reasons = 0, []
    for case in cases(phase, context):
        try:
            with torch.no_grad():
                case.make().run()
            built += case.meta
        except Unavailable as reason:
            reasons.append(str(reason))
    assert built >= 3
    assert all(re.search("cannot be imported|has no Triton kernel", reason) for reason in reasons), reasons


def test_a_finished_phase_is_skipped_unless_again(mini, tmp_path, monkeypatch):
    made = []

    def rows(phase, context):
        for name in "ab":
            yield Case(name, lambda n=name: made.append(n) or Work(lambda: None, note="nothing"))

    monkeypatch.setattr(gpu, "cases", rows)
    options = {"budget": 0.001, "limit": 60}
    context = Context.of(mini, CPU)
    for again in (False, False, True):
        gpu.run_phase("text", context, tmp_path, again=again, **options)
    assert made == ["a", "b", "a", "b"]


def test_an_interrupted_phase_goes_on_where_it_stopped(mini, tmp_path, monkeypatch):
    made = []

    def rows(phase, context):
        yield Case("a", lambda: made.append("a") or Work(lambda: None))
        if made.count("stop") == 0:
            made.append("stop")
            raise KeyboardInterrupt
        yield Case("b", lambda: made.append("b") or Work(lambda: None))

    monkeypatch.setattr(gpu, "cases", rows)
    context, options = Context.of(mini, CPU), {"again": False, "budget": 0.001, "limit": 60}
    with pytest.raises(KeyboardInterrupt):
        gpu.run_phase("text", context, tmp_path, **options)
    assert [row["name"] for row in json.loads((tmp_path / "text.json").read_text())["rows"]] == ["a"]
    assert gpu.run_phase("text", context, tmp_path, **options).finished
    assert made == ["a", "stop", "b"]


def test_rows_left_for_lack_of_time_are_measured_by_the_next_call(mini, tmp_path):
    context, options = Context.of(mini, CPU), {"again": False, "budget": 0.001}
    late = gpu.run_phase("text", context, tmp_path, limit=-1, **options)
    assert not late.finished
    assert {row["unmeasured"] for row in late.values["rows"]} == {gpu.LATER}
    assert all("seconds" in row for row in gpu.run_phase("text", context, tmp_path, limit=60, **options).values["rows"])


def test_a_wrong_result_is_not_timed():
    timed = []
    row = gpu.measure(
        Case("x", lambda: Work(lambda: timed.append(1), error=0.5, allowed=0.1)), Context.of(TINY, CPU), 1
    )
    assert row["unmeasured"].startswith("wrong")
    assert not timed
    nan = gpu.measure(Case("x", lambda: Work(lambda: None, error=float("nan"), allowed=0.1)), Context.of(TINY, CPU), 1)
    assert nan["unmeasured"].startswith("wrong")


def test_a_failing_row_does_not_stop_the_others():
    def fail() -> Work:
        raise RuntimeError("out of something\nand more")

    assert gpu.measure(Case("x", fail), Context.of(TINY, CPU), 1)["unmeasured"] == "RuntimeError: out of something"

    def absent() -> Work:
        import not_there_at_all  # type: ignore[import-not-found]  # noqa: F401

        raise AssertionError

    assert "not_there_at_all is not installed" in gpu.measure(Case("x", absent), Context.of(TINY, CPU), 1)["unmeasured"]


def test_the_table_comes_last_and_shows_shares(tmp_path, capsys):
    arguments = ["--phase", "ceilings", "--variant", "tiny", "--device", "cpu", "--budget", "0.01"]
    assert gpu.main([*arguments, "--output", str(tmp_path)]) == 0
    table = capsys.readouterr().out.rpartition("\n\n")[2].splitlines()
    assert table[1] == "ceilings"
    assert any("100%" in line for line in table)


@pytest.mark.parametrize(("layers", "streamed"), [(41, 0), (41, 1), (41, 20), (41, 41), (3, 2)])
def test_streamed_blocks_are_spread(layers, streamed):
    found = stream.spread(layers, streamed)
    assert len(found) == streamed
    gaps = {b - a for a, b in pairwise(found)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_streamed_blocks_arrive_in_order_and_whole():
    weights = [(torch.full((3,), float(i)),) for i in range(5)]
    ring = stream.Ring(weights, [0, 2, 3], CPU)
    for _ in range(3):  # an odd number streams: the buffers change places from one step to the next
        assert [float(ring[layer][0][0]) for layer in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="Block 2 was asked for where block 0 is next"):
        ring[2]


def test_counted_work_is_that_of_the_model():
    """FACTS.md: 163.1, 169.1 and 9.4 TFLOP for a sample and step; folded, the face is a quarter of it."""
    shape = VideoShape.of(PREVIEW, None, None, None)
    whole = cost.step_cost(PREVIEW, shape, folded=False, whole=True)
    assert [round(x / 1e12, 1) for x in (whole.attention, whole.linears, whole.face)] == [163.1, 169.1, 9.4]
    assert cost.step_cost(PREVIEW, shape).face == pytest.approx(whole.face / 4, rel=0.02)
    assert cost.step_bytes(PREVIEW, shape, 2, hoisted=False) == pytest.approx(12.3e9, rel=0.01)


@pytest.mark.parametrize("variant", [TINY, PREVIEW])
def test_counted_work_is_what_pytorch_counts(variant):
    shape = VideoShape.of(variant, None, None, None)
    t = variant.transformer
    counted = cost.graph_flops(variant, shape, "last_block") + (t.num_layers - 1) * cost.graph_flops(
        variant, shape, "block"
    )
    expected = cost.step_cost(variant, shape)
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
