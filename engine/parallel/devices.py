"""An engine on several devices: opening it, and which of its graphs run on all of them."""

import os
import pickle
import socket
from collections.abc import Hashable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self
from weakref import finalize

import torch
import torch.distributed as dist

from ..backends import Runner
from ..decode.frames import MODES, Modes
from ..engine import Engine
from ..errors import EngineError, InputError, RankError, shown
from ..graphs.graph import Graph
from ..graphs.grouped import TRUNK
from ..manifest import MOST_DEVICES, Manifest
from ..memory.costs import Costs
from ..run.holder import Holder
from ..runtime.executor import GraphExecutor
from ..shapes import VideoShape
from ..shortcuts import Loop
from ..util.device import check_device
from .costs import spread
from .crew import Crew, put, second, switches
from .decode import dealt_tiles, slabs
from .exchange import TRANSPORTS, Exchange
from .mesh import Mesh
from .team import Team, TeamExecutor
from .trunk import trunk_of

TIMEOUT = 600.0  # seconds: loading a checkpoint, or compiling the kernels of a first call, are the longest silences
LAUNCHED = "torchrun"


class OnDevices(Engine):
    """An engine that may have more devices than its own.

    Attributes:
        team: the devices, None where there is one.
    """

    team: Team | None = None

    @classmethod
    def open(
        cls, folder: str | Path, device: str | torch.device | None = None, *, memory: int | str | None = None,
        verify: bool = False, warm_up: bool = False, cuda_graphs: bool = False,
        devices: int | Sequence[str | torch.device] | str | None = None, mesh: str | None = None,
        timeout: float = TIMEOUT, transport: str | None = None,
    ) -> Self:  # fmt: skip
        """Open an engine folder that consisid-build made; see Engine.open for what is not here.

        Args:
            memory: of each device.
            devices: several for each video, as a number or a list such as ["cuda:0", "cuda:1"], the first of which is
                this process's own; or "torchrun", for the processes that torchrun has started. Each gets a process,
                which ends with the engine: `close` it, or let go of it.
            mesh: what they share, such as "cfg=2,ulysses=3"; by default Mesh.choose.
            timeout: seconds after which a device that does not answer is given up.
            transport: "nccl", by default between GPUs, or "gloo", by default between processes on a CPU; between GPUs
                that takes the way through the host.

        Raises:
            RankError: a process of another device could not open the engine.
        """
        if devices is None:
            if mesh is not None:
                raise InputError(f"mesh={shown(mesh)} is about several devices; give devices too.")
            return super().open(
                folder, device, memory=memory, verify=verify, warm_up=warm_up, cuda_graphs=cuda_graphs
            )  # fmt: skip
        if device is not None:
            raise InputError("Both device and devices were given; give one of the two.")
        if cuda_graphs:
            raise InputError("CUDA graphs cannot record what passes between devices; leave cuda_graphs out.")
        manifest = Manifest.read(Path(os.path.abspath(folder)))
        places = list_devices(devices, manifest.spec.device)
        size = int(os.environ["WORLD_SIZE"]) if places is None else len(places)
        first = f"cuda:{os.environ['LOCAL_RANK']}" if places is None and manifest.spec.device == "cuda" else None
        heads = manifest.spec.variant.transformer.num_attention_heads
        box = Mesh.choose(size, heads) if mesh is None else Mesh.parse(mesh, heads)
        if box.size != size:
            raise InputError(f"mesh={shown(mesh)} is of {box.size} devices, and there are {size}.")
        check_graphs(manifest, Path(folder), box)
        transport = check_transport(transport, manifest.spec.device)
        box = replace(box, transport=transport)
        open_here = partial(
            super().open, folder, places[0] if places else first, memory=memory, verify=verify, warm_up=warm_up
        )
        if size == 1:
            return open_here()
        place = {
            "folder": os.path.abspath(folder), "memory": memory, "devices": places, "kind": manifest.spec.device,
            "mesh": box, "timeout": timeout, "transport": transport, "switches": switches(),
        }  # fmt: skip
        crew = begin_crew(place, size, timeout)
        try:
            engine = open_here(mesh=box)
            engine.team = _joined(engine, crew, box, timeout, transport)
        except BaseException:
            crew.end(0.0)
            crew.leave()
            raise
        finalize(engine, Team.end, engine.team)
        return engine

    def wants(self, graph: Graph) -> bool:
        """Of graphs that hold their weights not those for all tokens, where each device has a part of them."""
        spread_out = self.mesh is not None and self.mesh.sequence > 1 and self.manifest.spec.layers_per_shard > 0
        return super().wants(graph) and not (spread_out and graph.name.startswith(TRUNK))

    @cached_property
    def spread_runners(self) -> dict[Hashable, Runner]:
        """The graphs for a share of the tokens that have been loaded."""
        return {}

    def close(self) -> None:
        """End the processes of the other devices; the engine can make no more videos. Nothing where there are none."""
        if self.team is not None:
            self.team.end()

    def loop_of(self, networks: GraphExecutor, shape: VideoShape, holder: Holder) -> GraphExecutor:
        if self.team is None:
            return networks
        plan, team = holder.plan, self.team
        rows = 1 if plan is None else plan.rows
        trunk = trunk_of(self, networks, shape, team.exchange, team.mesh, rows, self.spread_runners)
        begin = partial(team.begin, shape, plan, holder.loras, "denoise")
        begin()  # where nobody has announced it
        return TeamExecutor(networks, team, trunk, begin)

    def announce(self, shape: VideoShape, holder: Holder) -> None:
        if self.team is not None and holder.owner is holder:  # the others bring their weights while this one encodes
            self.team.begin(shape, holder.plan, holder.loras, "denoise")

    def decoders(self, shape: VideoShape, holder: Holder) -> Modes:
        if self.team is None or self.manifest.spec.layers_per_shard:
            return MODES
        begin = partial(self.team.begin, shape, holder.plan, holder.loras, "decode")
        return {
            **MODES, "whole": partial(slabs, self.team, begin, False), "exact": partial(slabs, self.team, begin, True),
            "tiled": partial(dealt_tiles, self.team, begin),
        }  # fmt: skip

    def costs(
        self, shape: VideoShape, batch: int, steps: int, guided: bool, loop: Loop | None = None, beside: int = 1
    ) -> Costs:  # fmt: skip
        found = super().costs(shape, batch, steps, guided, loop, beside)
        if self.mesh is None:
            return found
        return spread(
            found, self.variant, shape, self.dtype, self.mesh, batch=batch, guided=guided,
            fused=self.device.type == "cuda", rows=self.may_cut_rows, holders=self.holders, beside=beside,
        )  # fmt: skip

    @property
    def holders(self) -> int:
        """Devices of which each may keep a part of what streams: one where what they send passes through the host, or
        engines hold their weights."""
        through_host = self.device.type == "cuda" and self.mesh.transport == "gloo"
        return 1 if through_host or self.manifest.spec.layers_per_shard else self.mesh.size

    def give_back(self) -> None:
        super().give_back()
        if self.team is not None:
            self.team.rest()


def list_devices(devices: Any, kind: str) -> list[str] | None:
    """The names of devices; None for those of torchrun.

    Args:
        kind: that the engine was built for.

    Raises:
        InputError: no devices; one that is not there, or twice.
    """
    if devices == LAUNCHED:
        if not dist.is_torchelastic_launched():
            raise InputError('devices="torchrun" is for processes that torchrun has started, and this is none.')
        return None
    if isinstance(devices, int) and not isinstance(devices, bool):
        if not 1 <= devices <= MOST_DEVICES:
            raise InputError(f"devices={devices} is not from 1 to {MOST_DEVICES}.")
        names = [_name(str(i), kind) for i in range(devices)]
    else:
        listed = isinstance(devices, list | tuple) and 0 < len(devices) <= MOST_DEVICES
        if not listed or not all(isinstance(each, str | int | torch.device) for each in devices):
            raise InputError(f'devices={shown(devices)} has to be a number or a list such as ["cuda:0", "cuda:1"].')
        names = [_name(str(each), kind) for each in devices]
    found = [str(check_device(name)) for name in names]
    if found[0] != "cpu" and len(set(found)) < len(found):
        raise InputError(f"devices={shown(devices)} names a device twice; each rank needs its own.")
    return found


def _name(device: str, kind: str) -> str:
    """Of a device that may be given by its number."""
    return device if not device.isdecimal() else kind if kind == "cpu" else f"{kind}:{device}"


def check_graphs(manifest: Manifest, folder: Path, mesh: Mesh) -> None:
    """Whether an engine has the graphs for a mesh.

    Raises:
        EngineError: it was compiled for another.
    """
    spec = manifest.spec
    if mesh.sequence == 1 or spec.sequence == mesh.sequence:
        return
    if spec.layers_per_shard or any(entry.file for entry in manifest.graphs.values()):
        raise EngineError(
            f"{folder} was compiled for tokens on {spec.sequence} device{'s' * (spec.sequence > 1)}, and mesh {mesh} "
            f"spreads them over {mesh.sequence}; build it with --sequence {mesh.sequence}, or with --backend eager."
        )


def check_transport(transport: str | None, kind: str) -> str:
    """What tensors are sent by; raises InputError for what cannot be."""
    if transport is None:
        return "nccl" if kind == "cuda" else "gloo"
    if transport not in TRANSPORTS or (transport == "nccl" and kind == "cpu"):
        raise InputError(f"transport={shown(transport)} is not nccl, which is for GPUs only, or gloo.")
    return transport


def begin_crew(place: dict[str, Any], size: int, timeout: float) -> Crew:
    """The other processes, which have been told what to open.

    Raises:
        InputError: this process has a group of torch.distributed already.
        RankError: there is no place for the store that they meet at.
    """
    if dist.is_initialized():
        raise InputError(
            "This process has a process group of torch.distributed already, of another engine on several devices or "
            "its own; close that first."
        )
    wait = timedelta(seconds=timeout)
    try:
        if place["devices"] is None:
            store = next(dist.rendezvous("env://", timeout=wait))[0]
            crew = Crew(store, second(), size, timeout)
            crew.watch()
        else:
            store = own_store(wait)
            crew = Crew(store, second("127.0.0.1", store.port), size, timeout)
            crew.start(f"{__package__}.follower", store.port)
    except RuntimeError as error:
        raise RankError(f"The processes of several devices found no place to meet ({error}).") from None
    put(store, "open", pickle.dumps(place))
    return crew


def own_store(wait: timedelta) -> dist.TCPStore:
    """A store that this machine alone can reach: left to itself it would listen to every network, and what the others
    do is what they find in it."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    return dist.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=wait, master_listen_fd=listening.detach()
    )  # fmt: skip


def _joined(engine: Engine, crew: Crew, mesh: Mesh, timeout: float, transport: str) -> Team:
    """The team, once every rank has opened the same engine."""
    for rank in range(1, mesh.size):
        if crew.answers("ready", rank).decode() != engine.manifest.spec.key:
            raise EngineError(
                f"Rank {rank} has opened another engine than rank 0; give every rank the same folder, {engine.folder}."
            )
    exchange = Exchange(0, mesh.size, engine.device, timedelta(seconds=timeout), transport)
    put(crew.store, "go", b"")
    crew.join(exchange)
    engine.weights.others = exchange
    return Team(exchange, mesh, crew)
