"""`--backend auto`: the fastest of the backends that are right is kept, and the others' reasons are written down."""

import time
from types import SimpleNamespace

import pytest
import torch
from support.engines import ANY_SIZE

from consisid.engine.backends import eager
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.errors import BackendError
from consisid.engine.graphs.graph import weight_shapes
from consisid.engine.graphs.table import graph_table
from consisid.engine.manifest import Manifest
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY
from consisid.export import build
from consisid.export import compile as choose
from consisid.export.describe import describe_folder

GRAPH = graph_table(TINY, VideoShape.of(TINY, 96, 144, 9))["time_embed"]


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """These backends are stand-ins, and `make test-fast` has no compiler."""
    monkeypatch.setattr(choose, "check_compiler", lambda: None)


def weights():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator) for size in weight_shapes(GRAPH.module()).values()]


def fake(*, error=0.0, slower=0.0, fault=None):
    """A backend that writes a file and computes what eager does, a little wrong, a little later, or not at all."""

    def compile(graph, path, device, dtype):
        if fault is not None:
            raise fault
        path.write_text(graph.name)

    def load(graph, path, device, names):
        run = eager.load(graph, path, device, names)

        def later(inputs, tensors):
            time.sleep(slower)
            return run(inputs, tensors) * (1 + error)

        return later

    return SimpleNamespace(SUFFIX=".fake", compile=compile, load=load)


def chosen(monkeypatch, tmp_path, dtype=torch.float32, **backends):
    monkeypatch.setattr(choose, "candidates", lambda graph, device: tuple(backends))
    monkeypatch.setattr(choose, "backend", lambda name: backends.get(name, eager))
    tensors = [tensor.to(dtype) for tensor in weights()]
    return choose.compile_graph("auto", GRAPH, tmp_path / GRAPH.name, torch.device("cpu"), dtype, lambda: tensors)


def test_the_fastest_is_kept_and_all_times_with_it(monkeypatch, tmp_path):
    slow = SimpleNamespace(SUFFIX=None, compile=eager.compile, load=fake(slower=0.02).load)
    choice = chosen(monkeypatch, tmp_path, eager=slow, inductor=fake())
    assert choice.backend == "inductor"
    assert choice.file == tmp_path / "time_embed.fake"
    assert set(choice.milliseconds) == {"eager", "inductor"}
    assert choice.milliseconds["eager"] > 20
    assert not choice.rejected


def test_the_slower_file_goes(monkeypatch, tmp_path):
    choice = chosen(monkeypatch, tmp_path, eager=eager, inductor=fake(slower=0.02))
    assert (choice.backend, choice.file) == ("eager", None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05), (torch.float32, float("nan"))]
)
def test_what_is_wrong_is_not_taken_however_fast(monkeypatch, tmp_path, dtype, error):
    slow = SimpleNamespace(SUFFIX=None, compile=eager.compile, load=fake(slower=0.02).load)
    choice = chosen(monkeypatch, tmp_path, dtype, eager=slow, inductor=fake(error=error))
    assert choice.backend == "eager"
    assert "its error of" in choice.rejected["inductor"]
    assert "inductor" not in choice.milliseconds
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "right"), [(0.105, True), (0.13, False)])
def test_in_half_precision_a_backend_may_be_a_tenth_more_wrong_than_eager(monkeypatch, tmp_path, error, right):
    """Eager is made a tenth wrong in half precision, much more than what rounding is."""

    def wrong(error):
        def load(graph, path, device, names):
            run = eager.load(graph, path, device, names)

            def later(inputs, tensors):
                exact = run([x.float() for x in inputs], [w.float() for w in tensors])
                return exact * (1.0 if tensors[0].dtype is torch.float32 else 1 + error)

            return later

        return load

    other = fake()
    other.load = wrong(error)
    plain = SimpleNamespace(SUFFIX=None, compile=eager.compile, load=wrong(0.1))
    choice = chosen(monkeypatch, tmp_path, torch.bfloat16, eager=plain, inductor=other)
    assert ("inductor" in choice.milliseconds) is right
    assert ("inductor" in choice.rejected) is not right


def test_what_cannot_compile_is_passed_over(monkeypatch, tmp_path):
    broken = fake(fault=RuntimeError("No working C++ compiler found in cpp.cxx\nmany more lines"))
    choice = chosen(monkeypatch, tmp_path, eager=eager, inductor=broken)
    assert choice.backend == "eager"
    assert "No working C++ compiler" in choice.rejected["inductor"]
    assert choice.rejected["inductor"].endswith("install g++.")


def test_what_was_asked_for_by_name_has_to_compile(monkeypatch, tmp_path):
    monkeypatch.setattr(choose, "backend", lambda name: fake(fault=RuntimeError("too large")))
    with pytest.raises(
        BackendError, match=r"could not compile the graph time_embed \(too large\); build with --backend"
    ):
        choose.compile_graph("inductor", GRAPH, tmp_path / "x", torch.device("cpu"), torch.float32, weights)


def test_the_manifest_keeps_times_and_reasons(monkeypatch, tmp_path):
    broken = fake(fault=RuntimeError("too large"))
    monkeypatch.setattr(choose, "candidates", lambda graph, device: ("eager", "inductor"))
    monkeypatch.setattr(choose, "backend", {"eager": eager, "inductor": broken}.get)
    monkeypatch.setattr(choose, "RUNS", 1)
    monkeypatch.setattr(choose, "SMALL", 0)
    checkpoint = write_checkpoint(ANY_SIZE, tmp_path / "checkpoint")
    manifest = build(checkpoint, tmp_path / "engine", num_frames=9, height=48, width=48)
    assert manifest == Manifest.read(tmp_path / "engine")
    for entry in manifest.graphs.values():
        assert entry.backend == "eager"
        assert entry.milliseconds["eager"] > 0
        assert "too large" in entry.rejected["inductor"]
    assert "not inductor: inductor could not compile the graph block (too large)" in describe_folder(manifest, tmp_path)


def test_a_small_model_on_a_cpu_is_not_compiled(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(choose, "_compile", lambda *_: pytest.fail("it was compiled"))
    checkpoint = write_checkpoint(ANY_SIZE, tmp_path / "checkpoint")
    with caplog.at_level("INFO", "consisid"):
        manifest = build(checkpoint, tmp_path / "engine", num_frames=9, height=48, width=48)
    assert {entry.backend for entry in manifest.graphs.values()} == {"eager"}
    reason = "million parameters on a CPU are not worth minutes of compiling"
    assert all(reason in entry.rejected["inductor"] for entry in manifest.graphs.values())
    assert describe_folder(manifest, tmp_path).count(reason) == 1
    assert [record.message for record in caplog.records if reason in record.message] != []
    few = {"time_embed": GRAPH}
    assert set(choose.not_worth_it("auto", few, torch.device("cpu"))) == {"inductor"}
    assert choose.not_worth_it("inductor", few, torch.device("cpu")) == {}
    assert choose.not_worth_it("auto", few, torch.device("cuda")) == {}
    large = graph_table(PREVIEW, VideoShape.of(PREVIEW, None, None, None))
    assert choose.not_worth_it("auto", large, torch.device("cpu")) == {}
