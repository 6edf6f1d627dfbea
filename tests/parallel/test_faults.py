"""A rank that is lost: one sentence names it, nothing is left running, and what was finished can be gone on from."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import torch
from support.devices import STEPS, split
from support.people import random_identity

from consisid.engine import ConsisID
from consisid.engine.errors import EngineError, InputError, RankError
from consisid.export import build

pytestmark = pytest.mark.slow

PROMPT = "A person reads."
LONGEST = 60  # seconds in which whatever happens has to have ended
STALLED = 12  # and until one is taken to be lost, also while it opens
STAGES = ("identify", "text", "prepare", "denoise", "decode")


def kill(engine, rank=2):
    os.kill(engine.team.crew.processes[rank].pid, signal.SIGKILL)


def stall(engine, rank=1):
    os.kill(engine.team.crew.processes[rank].pid, signal.SIGSTOP)


def fail(engine):
    engine.team.order("nonsense")


FAULTS = {
    "killed": (kill, "rank 2 of 3 was ended by signal 9"),
    "stalled": (stall, f"rank 1 has not answered for {STALLED} s"),
    "raising": (fail, "rank [12] of 3 failed: AttributeError: 'Follower' object has no attribute 'nonsense'"),
}
EVERY = [
    pytest.param(stage, fault, marks=() if (stage, fault) in (("decode", "killed"), ("prepare", "raising")) else full)
    for full in [pytest.mark.full]
    for stage in STAGES
    for fault in FAULTS
]


def running(engine):
    return [rank for rank, process in engine.team.crew.processes.items() if process.poll() is None]


def ended(work):
    """What work raises, or gives; fails where it does not end."""
    found = []

    def thread():
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    worker = Thread(target=thread, daemon=True)
    worker.start()
    worker.join(LONGEST)
    assert found, "it hangs"
    return found[0]


class AtStage(logging.Handler):
    """Does something when a stage of a run begins."""

    def __init__(self, stage, work):
        super().__init__(logging.INFO)
        self.stage, self.work = stage, work

    def emit(self, record):
        if record.args and record.args[0] == self.stage:
            self.work()


@pytest.mark.parametrize(("stage", "fault"), EVERY)
def test_a_rank_is_lost(shallow_folder, stage, fault):
    # A rank that has ended is seen as such. One that stalls is not told from one that a busy machine keeps waiting.
    engine = ConsisID.open(shallow_folder, devices=3, timeout=STALLED if fault == "stalled" else LONGEST)
    act, sentence = FAULTS[fault]
    log, handler = logging.getLogger("consisid"), AtStage(stage, lambda: act(engine))
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        error = ended(
            lambda: engine.generate(random_identity(engine.variant), PROMPT, num_inference_steps=2, num_frames=9)
        )
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    assert isinstance(error, RankError)
    with pytest.raises(RankError, match=sentence):
        raise error
    assert "\n" not in str(error)
    assert running(engine) == []
    with pytest.raises(RankError, match=f"{sentence}.*Open the engine again"):
        engine.generate(random_identity(engine.variant), PROMPT)
    engine.close()


def test_a_device_that_is_lost_takes_its_part_along(shallow_folder, monkeypatch):
    engine = ConsisID.open(shallow_folder, devices=2, timeout=LONGEST)
    chosen = split(engine, 4)
    monkeypatch.setattr("consisid.engine.run.run.plan_of", lambda *_, **__: chosen)
    monkeypatch.setattr(engine, "memory", 2**30)
    gather, left = engine.team.exchange.gather, iter(range(5))

    def once(part, buffer):
        if next(left, None) is None:
            kill(engine, 1)
        gather(part, buffer)

    monkeypatch.setattr(engine.team.exchange, "gather", once)
    error = ended(lambda: engine.generate(random_identity(engine.variant), PROMPT, num_inference_steps=STEPS))
    assert isinstance(error, RankError)
    assert "rank 1 of 2 was ended by signal 9" in str(error)
    assert running(engine) == []
    engine.close()


def test_a_group_that_is_made_in_part_is_no_more(shallow_folder, monkeypatch):
    """The next engine opens."""
    monkeypatch.setattr(torch.distributed, "new_group", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ConsisID.open(shallow_folder, devices=2, timeout=20)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("devices", [None, pytest.param(2, marks=pytest.mark.full)])
def test_another_number_of_devices_goes_on(shallow, shallow_folder, tmp_path, devices):
    """From the checkpoint of a run that a rank was lost in."""
    options = {"seed": 4, "num_inference_steps": 4, "output_type": "latent", "num_frames": 9}
    person = random_identity(shallow.variant)
    expected = shallow.generate(person, PROMPT, **options).latents
    options |= {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 1}
    engine = ConsisID.open(shallow_folder, devices=3, timeout=LONGEST)

    def step(_engine, index, _timestep, _tensors):
        if index == 2:
            kill(engine)
        return {}

    error = ended(lambda: engine.generate(person, PROMPT, callback_on_step_end=step, **options))
    assert isinstance(error, RankError)
    steps = []
    other = ConsisID.open(shallow_folder, devices=devices)
    try:
        found = other.generate(
            person, PROMPT, callback_on_step_end=lambda e, index, t, tensors: steps.append(index) or {}, **options
        )
    finally:
        other.close()
    assert steps[0] in (2, 3)
    assert (found.latents - expected).abs().max() <= 1e-4


def test_a_rank_is_lost_while_it_opens(shallow_folder, monkeypatch):
    from consisid.engine.parallel import crew

    pids = []
    start = crew.Crew.start

    def started(self, *args):
        start(self, *args)
        pids.extend(process.pid for process in self.processes.values())
        os.kill(pids[0], signal.SIGKILL)

    monkeypatch.setattr(crew.Crew, "start", started)
    with pytest.raises(RankError, match="rank 1 of 3 was ended by signal 9"):
        ConsisID.open(shallow_folder, devices=3, timeout=30)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not torch.distributed.is_initialized()


def test_ranks_that_open_different_engines(shallow_folder, tmp_path, monkeypatch):
    other = tmp_path / "other"
    build("tiny", other, backend="eager", num_frames=9)
    from consisid.engine.parallel import devices

    begin = devices.begin_crew
    monkeypatch.setattr(devices, "begin_crew", lambda place, *rest: begin(place | {"folder": str(other)}, *rest))
    with pytest.raises(EngineError, match="Rank 1 has opened another engine than rank 0"):
        ConsisID.open(shallow_folder, devices=2, timeout=30)
    assert not torch.distributed.is_initialized()


COMMAND = [sys.executable, "-m", "consisid.engine.cli"]


def torchrun_place(port, rank=0, size=2):
    """What torchrun says to a process."""
    return os.environ | {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False",
    }  # fmt: skip


def test_a_port_that_is_taken(shallow_folder, tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = subprocess.run(
            [*COMMAND, str(shallow_folder), "--image", "x.png", "--prompt", PROMPT, "--output", "x.mp4"], cwd=tmp_path,
            env=torchrun_place(taken.getsockname()[1]), capture_output=True, text=True, timeout=LONGEST, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "found no place to meet" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"devices": 0}, "devices=0 is not from 1 to 64"),
        ({"devices": 2.5}, "devices=2.5 has to be a number or a list"),
        ({"devices": []}, r"devices=\[\] has to be a number or a list"),
        ({"devices": ["cuda:0", "cuda:1"]}, "sees no CUDA GPU"),
        ({"devices": "torchrun"}, "this is none"),
        ({"devices": 2, "device": "cpu"}, "Both device and devices"),
        ({"mesh": "cfg=2"}, "give devices too"),
        ({"devices": 2, "mesh": "cfg=2,ring=2"}, "is of 4 devices, and there are 2"),
        ({"devices": 2, "transport": "nccl"}, "which is for GPUs only"),
        ({"devices": 2, "cuda_graphs": True}, "leave cuda_graphs out"),
    ],
)
def test_what_cannot_be_opened(shallow_folder, options, sentence):
    with pytest.raises(InputError, match=sentence):
        ConsisID.open(shallow_folder, **options)
    assert not torch.distributed.is_initialized()


def test_one_engine_at_a_time(shallow_folder):
    engine = ConsisID.open(shallow_folder, devices=2)
    with pytest.raises(InputError, match="has a process group of torch"):
        ConsisID.open(shallow_folder, devices=2)
    processes = list(engine.team.crew.processes.values())
    assert running(engine) == [1]
    del engine  # an engine that nobody has any more ends its processes
    assert all(process.wait(LONGEST) == 0 for process in processes)
    ConsisID.open(shallow_folder, devices=2).close()


def test_processes_end_with_the_one_that_began_them(shallow_folder):
    """However it ends."""
    script = (
        "import sys, time\nfrom consisid.engine import ConsisID\n"
        "engine = ConsisID.open(sys.argv[1], devices=2)\n"
        "print(engine.team.crew.processes[1].pid, flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(shallow_folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    end = time.monotonic() + LONGEST
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([sys.executable, "-m"], id="--devices"),
        pytest.param(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"], id="torchrun",
            marks=pytest.mark.full,
        ),
    ],
)  # fmt: skip
def test_the_command(shallow_folder, shallow, tmp_path, launcher):
    """On two devices, and begun by torchrun: a video, and one sentence where something is wrong."""
    random_identity(shallow.variant).save(tmp_path / "me.safetensors")
    command = [*launcher, "consisid.engine.cli", str(shallow_folder), "--image", "me.safetensors", "--prompt", PROMPT]
    command += ["--steps", "1", "--num-frames", "9", "--output", "a.mp4", "-v"]
    if "torch.distributed.run" not in launcher:
        command += ["--devices", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=2 * LONGEST, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.mp4").stat().st_size > 1000
    assert "[rank" not in done.stderr
    refused = subprocess.run(
        [*command, "--mesh", "cfg=2,ring=2"], cwd=tmp_path, capture_output=True, text=True, timeout=2 * LONGEST,
        check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "mesh='cfg=2,ring=2' is of 4 devices, and there are 2." in refused.stderr


@pytest.mark.full
def test_an_interrupt_ends_all(shallow_folder, shallow, tmp_path):
    """Ctrl-C in the loop: status 130, no process left, and the checkpoint is there."""
    random_identity(shallow.variant).save(tmp_path / "me.safetensors")
    command = [*COMMAND, str(shallow_folder), "--image", "me.safetensors", "--prompt", PROMPT, "--steps", "200"]
    command += ["--output", "a.mp4", "--devices", "2", "--checkpoint", "run.safetensors", "--checkpoint-every", "1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    end = time.monotonic() + LONGEST
    while not (tmp_path / "run.safetensors").exists() and time.monotonic() < end:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=LONGEST)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not Path(f"/proc/{children[0]}").exists()
    assert (tmp_path / "run.safetensors").exists()


def test_a_fork_leaves_them_alone(shallow_folder):
    engine = ConsisID.open(shallow_folder, devices=2)
    try:
        child = os.fork()
        if child == 0:
            engine.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert running(engine) == [1]
        made = engine.generate(random_identity(engine.variant), PROMPT, num_inference_steps=1, output_type="latent")
        assert made.latents.isfinite().all()
    finally:
        engine.close()


def test_nobody_else_can_give_orders(shallow_folder):
    """The store that the ranks obey listens to this machine alone."""
    engine = ConsisID.open(shallow_folder, devices=2)
    try:
        port = f"{engine.team.crew.store.port:04X}"
        tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table]
        listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port}")]
        assert listening == [f"0100007F:{port}"]
    finally:
        engine.close()


@pytest.mark.full
def test_torchrun_ends_with_what_needs_no_engine(shallow_folder, tmp_path):
    """Every rank, at help and at what is refused."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "consisid.engine.cli"]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=LONGEST, check=False)
    assert helped.returncode == 0
    assert "usage: " in helped.stdout
    given = [str(shallow_folder), "--image", "x.png", "--prompt", PROMPT, "--output", "x.mp4", "--devices", "2"]
    refused = subprocess.run(
        [*command, *given], cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST, check=False
    )
    assert refused.returncode != 0
    assert "torchrun has started the devices; leave out --devices 2." in refused.stderr


def test_an_error_of_this_rank_in_the_midst_of_an_exchange(shallow_folder, monkeypatch):
    """Which no other rank knows of: they end, and the next call says why."""
    from consisid.engine.parallel.trunk import SpreadTrunk

    engine = ConsisID.open(shallow_folder, devices=2)
    person = random_identity(engine.variant)

    def run(*_given, **_named):
        raise ZeroDivisionError("of a test")

    with monkeypatch.context() as patch:
        patch.setattr(SpreadTrunk, "run", run)
        with pytest.raises(ZeroDivisionError):
            engine.generate(person, PROMPT, num_inference_steps=1)
    assert running(engine) == []
    with pytest.raises(RankError, match=r"rank 0 failed: ZeroDivisionError: of a test\. Open the engine again"):
        engine.generate(person, PROMPT, num_inference_steps=1)
    engine.close()
