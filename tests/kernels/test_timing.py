"""How kernels are timed and what the table of them says, by a GPU that has no more than a clock."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from consisid.kernels.tools import benchmark, timing
from consisid.kernels.tools.cases import SMALL, cases

pytest.importorskip("triton")


class Clock:
    """A GPU on which each run takes the milliseconds that it is given for its turns; what is captured takes none."""

    def __init__(self, turns):
        self.now, self.captured, self.log = 0.0, None, []
        self.left = {name: list(spent) for name, spent in turns.items()}
        self.runs = {name: lambda name=name: self.run(name) for name in turns}

    def run(self, name):
        if self.captured is None:
            self.log.append(name)
            self.now += self.left[name].pop(0)
        else:
            self.captured.append(name)

    def CUDAGraph(self):
        graph = SimpleNamespace(names=[])
        graph.replay = lambda: [self.run(name) for name in graph.names]
        return graph

    @contextlib.contextmanager
    def graph(self, graph):
        self.captured = graph.names
        yield
        self.captured = None

    def Event(self, enable_timing):
        assert enable_timing
        event = SimpleNamespace(synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event


def test_the_median_of_alternating_replays(monkeypatch):
    """What compiling and the first replay cost is no part of it."""
    clock = Clock({"slow": [900.0, 90.0, 5.0, 7.0, 60.0], "fast": [800.0, 80.0, 1.0, 0.5, 3.0]})
    for name in ("CUDAGraph", "graph", "Event"):
        monkeypatch.setattr(torch.cuda, name, getattr(clock, name))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert timing.time(clock.runs, 3) == {"slow": 7.0, "fast": 1.0}
    assert clock.log == ["slow", "slow", "fast", "fast", *["slow", "fast"] * 3]
    assert not any(clock.left.values())


class WithoutData(TorchFunctionMode):
    """What is made on a GPU is made without memory."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return function(*args, **kwargs | ({"device": "meta"} if kwargs.get("device") == "cuda" else {}))


def test_what_the_hardware_reaches(monkeypatch):
    """A product of two matrices of 8192 and a copy of a GiB, each byte of which is read and written."""

    def time(runs, rounds):
        assert runs["product"]().shape == (8192, 8192)
        assert runs["product"]().dtype == torch.bfloat16
        assert runs["copy"]().nbytes == 2**30
        return {"product": 2.0, "copy": 0.5}

    monkeypatch.setattr(timing, "time", time)
    with WithoutData():
        flops, bandwidth = timing.ceilings()
    assert flops == pytest.approx(2 * 8192**3 / 2e-3)
    assert bandwidth == pytest.approx(2 * 2**30 / 0.5e-3)


def test_the_table_of_a_gpu(monkeypatch, tmp_path, capsys):
    """One row for each kernel with the limit that it is held against, printed and, if wanted, in a file."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(benchmark, "describe", lambda device, shape: f"flash for {list(shape)} on {device}")
    monkeypatch.setattr(benchmark, "ceilings", lambda: (1e12, 1e9))
    asked = []

    def time(runs, rounds):
        asked.append(rounds)
        return dict(zip(("ours", "pytorch", "compiled"), (0.25, 1.5, 0.5), strict=True))

    monkeypatch.setattr(benchmark, "time", time)
    small = list(cases(SMALL, "cpu", torch.float32))
    monkeypatch.setattr(benchmark, "cases", lambda size, device: small)
    assert benchmark.main(["--rounds", "7", "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert asked == [7] * len(small)
    for row, line, case in zip(rows, lines, small, strict=True):
        limit = max(case.cost.flops / 1e12, case.cost.bytes / 1e9)
        assert (row["kernel"], row["gpu"], row["flops"]) == (case.name, "A GPU", case.cost.flops)
        assert row["ceilings"] == {"flops_per_second": 1e12, "bytes_per_second": 1e9}
        assert row["share_of_limit"] == pytest.approx(limit / 0.25e-3)
        assert line.startswith(case.name)
        assert "ours 0.250 ms  pytorch 1.500 ms  compiled 0.500 ms" in line
        assert line.endswith(f"{row['share_of_limit']:.0%} of the limit by {row['limiter']}")
    keys = list(small[0].arguments[1].shape)
    assert [row.get("dispatched") for row in rows] == [f"flash for {keys} on cuda"] + [None] * (len(small) - 1)
