"""The processes of the other devices: starting them, telling them what to do, and noticing when one is lost.

Orders and signs of life go through a store of torch.distributed, which this process holds; it listens on the loopback
interface unless torchrun has made another.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Lock, Thread
from typing import Any, cast

import torch
import torch.distributed as dist

from ..errors import RankError, one_line
from .exchange import Exchange, join

FOREVER = timedelta(days=365)
PULSE = 0.5  # seconds between two signs of life
LOOK = 0.1  # seconds between two looks at the processes
GRACE = 5.0  # seconds in which a process that was asked to end does so


class Crew:
    """The others, as rank 0 sees them.

    Attributes:
        store, eyes: the same store, for what waits and for looking meanwhile.
        processes: by rank; none where torchrun started and watches them.
        timeout: seconds after which a rank that does not answer is given up.
        lost: the sentence about what was lost, None while nothing is.
    """

    def __init__(self, store: dist.Store, eyes: dist.Store, size: int, timeout: float):
        self.store, self.eyes, self.size, self.timeout = store, eyes, size, timeout
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.lost: str | None = None
        self._said, self._cleared = 0, 0
        self._groups: list[dist.ProcessGroup] = []
        self._joined = False
        self._closed, self._lock, self._speaking = Event(), Lock(), Lock()
        self._exchange: Exchange | None = None

    def start(self, module: str, port: int) -> None:
        """Start a process for each other rank, which runs a module of this package."""
        for rank in range(1, self.size):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.size, "MASTER_PORT": port}
            environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
            environment |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "False"}
            # In a session of its own: an interrupt of the terminal is this process's, which ends them in its time.
            self.processes[rank] = subprocess.Popen(
                [sys.executable, "-m", module], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.watch()

    def watch(self) -> None:
        """Look after the others until the end."""
        Thread(target=self._watch, name="consisid crew", daemon=True).start()

    def say(self, order: bytes) -> None:
        """The next order, for all of them."""
        with self._speaking:
            try:
                put(self.store, f"order/{self._said}", order)
                self._said += 1
            except BaseException:  # an interrupt, after which nobody knows who has heard what
                self._lose("rank 0 was interrupted")
                raise
        if self._said % 256 == 0:
            done = min(self._pulse(rank)[1] for rank in range(1, self.size))
            for number in range(self._cleared, done):
                self.store.delete_key(f"order/{number}")
            self._cleared = max(done, self._cleared)

    def answers(self, what: str, rank: int) -> bytes:
        """What a rank has put into the store under a name; waits for it.

        Raises:
            RankError: it has ended, failed or not answered in time.
        """
        key, end = f"{what}/{rank}", time.monotonic() + self.timeout
        while not self.store.check([key]):
            self._look()
            if self.lost is None and time.monotonic() > end:
                self._lose(f"rank {rank} of {self.size} has not answered for {self.timeout:g} s")
            if self.lost is not None:
                raise self.error()
            time.sleep(LOOK / 5)
        return bytes(self.store.get(key))

    @contextmanager
    def watching(self, exchange: Exchange) -> Iterator[None]:
        """Exchanges with the others.

        Raises:
            RankError: instead of what an exchange raises when another rank is lost.
        """
        if self.lost is not None:
            raise self.error(" Open the engine again.")
        self._exchange = exchange
        try:
            yield
        except Exception as error:
            if exchange.doing is not None and isinstance(error, RuntimeError):
                self._explain(error)
            elif self.lost is None:  # of this rank's own computing, in the midst of what the others have begun
                self._lose(f"rank 0 failed: {type(error).__name__}: {one_line(error, 200)}")
                raise
            raise self.error() from None
        except BaseException:  # an interrupt there
            self._lose("rank 0 was interrupted")
            raise
        finally:
            self._exchange, exchange.doing = None, None
        if self.lost is not None:  # what has arrived may be anything
            raise self.error()

    def error(self, more: str = "") -> RankError:
        """What was lost, once nothing is left of it."""
        self.end(0.0)
        self.leave()
        return RankError(f"{self.lost}{more}")

    def leave(self) -> None:
        """The group of all ranks is no more."""
        if self._joined:
            self._joined = False
            dist.destroy_process_group()

    def join(self, exchange: Exchange) -> None:
        """Make the group of all ranks.

        Raises:
            RankError: one of them does not join.
        """
        with self.watching(exchange):
            exchange.doing = "group"
            join(self.store, exchange)
            self._groups = [group for group in (dist.group.WORLD, exchange.beside) if group is not None]
            self._joined = True
            exchange.doing = None

    def _explain(self, error: RuntimeError) -> None:
        """Find out why an exchange failed: whose process has ended, or else who is behind."""
        end = time.monotonic() + 4 * PULSE
        while self.lost is None and time.monotonic() < end:
            self._look()
            time.sleep(LOOK)
        if self.lost is None:
            self._lose(self._slowest() if self.timed_out(error) else f"an exchange failed ({error})")

    def timed_out(self, error: RuntimeError) -> bool:
        """Whether an exchange has waited too long, or another rank has, which then leaves."""
        left = any(self.eyes.check([f"left/{rank}"]) for rank in range(1, self.size))
        return left or "timed out" in str(error).lower()

    def _watch(self) -> None:
        """Until the end: a rank that is lost ends the others, so that nobody waits for it."""
        count, since = -1, time.monotonic()
        while not self._closed.wait(LOOK):
            self._look()
            exchange = self._exchange
            if exchange is None or exchange.doing is None or exchange.count != count:
                count, since = -1 if exchange is None else exchange.count, time.monotonic()
            elif time.monotonic() - since > self.timeout + 4 * PULSE:
                self._lose(self._slowest())

    def _look(self) -> None:
        """Whether a rank says that it failed, or a process has ended that does not say that another made it."""
        for rank in range(1, self.size):
            if self.lost is None and self.eyes.check([f"failed/{rank}"]):
                self._lose(f"rank {rank} of {self.size} failed: {self.eyes.get(f'failed/{rank}').decode()}")
        for rank, process in self.processes.items():
            if self.lost is not None or self._closed.is_set() or process.poll() is None:
                continue
            if not any(self.eyes.check([f"{said}/{rank}"]) for said in ("failed", "left")):
                status = process.returncode
                ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
                self._lose(f"rank {rank} of {self.size} {ended}")

    def _pulse(self, rank: int) -> tuple[int, int]:
        """How many exchanges a rank has begun, and how many orders it has heard."""
        if not self.eyes.check([f"pulse/{rank}"]):
            return -1, 0
        begun, heard = self.eyes.get(f"pulse/{rank}").decode().split()
        return int(begun), int(heard)

    def _slowest(self) -> str:
        """Who has begun the fewest exchanges, of those that have not left because they waited too long."""
        ranks = [rank for rank in range(1, self.size) if not self.eyes.check([f"left/{rank}"])]
        begun = {rank: self._pulse(rank)[0] for rank in ranks or range(1, self.size)}
        names = [str(rank) for rank, count in begun.items() if count == min(begun.values())]
        who = f"rank {names[0]} has" if len(names) == 1 else f"one of the ranks {', '.join(names)} has"
        return f"{who} not answered for {self.timeout:g} s"

    def _lose(self, why: str) -> None:
        with self._lock:
            if self.lost is not None or self._closed.is_set():
                return
            why = one_line(why)
            self.lost = f"The engine on {self.size} devices has ended: {why}{'' if why.endswith('.') else '.'}"
        self.end(0.0)

    def end(self, grace: float = GRACE) -> None:
        """End the processes, and wait until they have; they have `grace` seconds to do it themselves."""
        self._closed.set()
        groups, self._groups = self._groups, []
        end = time.monotonic() + grace
        for process in self.processes.values():
            if grace == 0:
                process.kill()
        # Kernels that wait for a rank that is gone, and those of one group perhaps for the other's: both at once.
        lost = [group for group in groups if grace == 0 and dist.get_backend(group) == "nccl"]
        ending = [Thread(target=group.abort, daemon=True) for group in lost]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join(GRACE)
        for process in self.processes.values():
            try:
                process.wait(max(0.0, end - time.monotonic()) if grace else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def put(store: dist.Store, name: str, data: bytes) -> None:
    """Bytes into a store, which its type hints do not know."""
    store.set(name, cast(str, data))


def second(address: str | None = None, port: int | None = None) -> dist.Store:
    """Another way to a store, by default that of torch.distributed's environment variables: one that waits for an order
    says nothing."""
    host, number = address or os.environ["MASTER_ADDR"], port or int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, number, is_master=False, timeout=FOREVER)


class Pulse:
    """Another rank's sign of life: how far it is, twice a second. Where the store is gone, so is rank 0, and the
    process ends: it may be waiting for what will never come.

    Attributes:
        heard: orders so far.
    """

    def __init__(self, store: dist.Store, exchange: Exchange):
        self.heard = 0
        self._store, self._exchange = store, exchange
        Thread(target=self._beat, name="consisid pulse", daemon=True).start()

    def _beat(self) -> None:
        while True:
            try:
                self._store.set(f"pulse/{self._exchange.rank}", f"{self._exchange.count} {self.heard}")
            except RuntimeError:
                os._exit(1)
            time.sleep(PULSE)


SWITCHES = ("flash", "mem_efficient", "math", "cudnn")


def switches() -> dict[str, Any]:
    """What a user has chosen of PyTorch for this process, and the others are to have too."""
    cuda = torch.backends.cuda
    attention = {name: getattr(cuda, f"{name}_sdp_enabled")() for name in SWITCHES}
    return {"attention": attention, "precision": torch.get_float32_matmul_precision()}


def switch(chosen: Mapping[str, Any]) -> None:
    """Choose the same."""
    for name, on in chosen["attention"].items():
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(on)
    torch.set_float32_matmul_precision(chosen["precision"])


@contextmanager
def processors(rank: int, size: int, device: torch.device) -> Iterator[None]:
    """On a CPU: a part of the processors for each rank, so that none waits for another's threads."""
    if device.type != "cpu":
        yield
        return
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    mine = sorted(before)[rank * len(before) // size : (rank + 1) * len(before) // size]
    if mine:
        os.sched_setaffinity(0, mine)
        torch.set_num_threads(max(1, len(mine)))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)
