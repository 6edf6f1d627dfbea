"""A report of a GPU that was throttled, shared or unsteady is refused, with the reason; by a fake NVML."""

import json
import os
import time
from types import SimpleNamespace

import pytest
import torch

from consisid.bench.cli import main
from consisid.bench.core import peak_rates
from consisid.bench.core.nvml import Watch
from consisid.bench.core.peak_rates import Ceilings
from consisid.bench.report import measure, options
from consisid.engine.errors import ConsisIDError


class FakeNvml:
    """Answers as nvidia-ml-py does; attributes say what is going on on the GPU."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.pids, self.reasons, self.energy = {os.getpid()}, 0x1, 1000

    def nvmlDeviceGetHandleByIndex(self, index):
        return "gpu"

    def nvmlSystemGetDriverVersion(self):
        return "580.00"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.energy += 500
        return self.energy

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return 1980 if kind == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetTemperature(self, handle, kind):
        return 55

    def nvmlDeviceGetPowerUsage(self, handle):
        raise self.NVMLError("not supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=pid) for pid in self.pids]


@pytest.fixture
def nvml(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    fake = FakeNvml()
    fake.pids = set()  # before our context
    return fake


def watch_of(nvml, during=lambda: None):
    watch = Watch.of(nvml, None)
    nvml.pids = nvml.pids | {77}  # our context, under the number that the host knows us by
    watch.ours_is_here()
    with watch:
        during()
    return watch


def test_a_quiet_gpu_passes(nvml):
    watch = watch_of(nvml)
    options.check_watched(watch.seen)
    summary = watch.seen.summary()
    assert summary["joules"] == 0.5
    assert summary["sm_clock_mhz"]["median"] == 1980
    assert summary["watts"] is None  # what this GPU does not tell is not made up
    assert watch.driver == "580.00"


@pytest.mark.parametrize(
    ("reason", "name"),
    [(0x08, "hardware slowdown"), (0x20, "software thermal"), (0x40, "hardware thermal"), (0x80, "power brake")],
)
def test_throttled_clocks_refuse(nvml, reason, name):
    nvml.reasons = reason
    with pytest.raises(options.RefusedError, match=name):
        options.check_watched(watch_of(nvml).seen)


def test_the_power_limit_is_recorded_and_does_not_refuse(nvml):
    nvml.reasons = 0x04
    watch = watch_of(nvml)
    options.check_watched(watch.seen)
    assert watch.seen.summary()["power_capped"]


def test_throttling_between_start_and_end_is_seen(nvml):
    def hot():
        nvml.reasons = 0x40
        time.sleep(0.5)
        nvml.reasons = 0

    with pytest.raises(options.RefusedError):
        options.check_watched(watch_of(nvml, hot).seen)


def test_a_process_that_was_there_before_refuses(nvml):
    nvml.pids = {4242}
    with pytest.raises(options.RefusedError, match="4242"):
        options.check_alone(Watch.of(nvml, None).others())


def test_a_busy_gpu_does_not_matter_to_a_cpu(nvml):
    nvml.pids = {4242}
    assert measure.guard(nvml, torch.device("cpu")) is None


def test_the_gpu_that_cuda_sees_is_the_one_that_is_watched(nvml, monkeypatch):
    asked = []
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", asked.append)
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByUUID", asked.append, raising=False)
    for visible in ("", "2,5", "GPU-aa,GPU-bb"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        Watch.of(nvml, 1)
    assert asked == [1, 5, "GPU-bb"]


def test_a_process_that_comes_during_the_run_refuses(nvml):
    def visit():
        nvml.pids = nvml.pids | {99}

    with pytest.raises(options.RefusedError, match="99"):
        options.check_watched(watch_of(nvml, visit).seen)


def test_ceilings_that_move_refuse_on_a_gpu_and_are_noted_on_a_cpu():
    start, slower, steady = Ceilings(700, 4000, ""), Ceilings(620, 4000, ""), Ceilings(640, 4100, "")
    with pytest.raises(options.RefusedError, match=r"product ceiling moved by -11%"):
        options.check_ceilings(start, slower, gpu=True)
    assert options.check_ceilings(start, steady, gpu=True)["note"] is None
    assert "product ceiling moved by -11%" in options.check_ceilings(start, slower, gpu=False)["note"]


def test_the_command_refuses_and_writes_nothing(nvml, mini_folder, tmp_path, monkeypatch, capsys):
    nvml.pids = {4242}
    monkeypatch.setattr(measure, "load_nvml", lambda: (nvml, None))
    monkeypatch.setattr(measure, "device_of", lambda _: torch.device("cuda"))
    assert main([str(mini_folder), "--output", str(tmp_path / "r")]) == 2
    assert "4242" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    assert issubclass(options.RefusedError, ConsisIDError)


@pytest.fixture
def watched(nvml, monkeypatch):
    """The command on this CPU, under a watch as a GPU has it."""
    monkeypatch.setattr(measure, "guard", lambda *_: Watch.of(nvml, None))
    monkeypatch.setattr(Watch, "check_same", lambda *_: None)
    return nvml


def measure_watched(folder, output):
    return main([str(folder), "--output", str(output), "--steps", "2", "--runs", "1", "--no-peers"])


def test_the_command_refuses_what_was_throttled_during_the_run(watched, mini_folder, tmp_path, capsys):
    watched.reasons = 0x40
    assert measure_watched(mini_folder, tmp_path / "r") == 2
    assert "throttled during the run (hardware thermal slowdown)" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_the_command_refuses_moved_ceilings(watched, mini_folder, tmp_path, monkeypatch, capsys):
    found = iter((Ceilings(700, 4000, ""), Ceilings(620, 4000, "")))
    monkeypatch.setattr(peak_rates, "measure", lambda *_: next(found))
    check = options.check_ceilings
    monkeypatch.setattr(measure, "check_ceilings", lambda start, end, gpu: check(start, end, True))
    assert measure_watched(mini_folder, tmp_path / "r") == 2
    assert "product ceiling moved by -11%" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_the_command_reports_what_was_watched(watched, mini_folder, tmp_path):
    assert measure_watched(mini_folder, tmp_path / "r") == 0
    found = json.loads((tmp_path / "r" / "report.json").read_text())
    assert found["watched"]["sm_clock_mhz"]["median"] == 1980
    assert found["energy"]["joules_per_video"] == 0.5


def test_ceilings_are_measured_on_what_is_there():
    found = peak_rates.measure(torch.device("cpu"), torch.float32, budget=0.01)
    assert found.tflops > 0
    assert found.gbps > 0
    assert "float32" in found.how
