"""diffusers' memory savers as plans of the memory.

diffusers moves modules by hooks: all the components of a stage at a time, or each layer when it is called. Here a plan
does that, with the copies beside the computation; what a saver asks for becomes the budget of that plan.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..api import ConsisID
from ..engine import Engine
from ..memory.allocator import aligned
from ..memory.budget import show
from ..memory.costs import Costs
from ..memory.planner import candidates, plan
from ..memory.simulate import Machine, machine_named
from ..shapes import VideoShape
from ..util.device import check_device

LOG = logging.getLogger("consisid")
STREAMING = ("sequential", "group")


@dataclass(frozen=True)
class Savers:
    """What a script has turned on.

    Attributes:
        offload: "model", "sequential" or "group", as diffusers' methods are called; None for none.
        device: where is computed.
        tiling: the decoder may be cut into tiles.
    """

    offload: str | None = None
    device: torch.device | None = None
    tiling: bool = False

    def budget(self, device: torch.device, gpu: str, costs: Callable[[], Costs]) -> int | None:
        """Bytes of the plan for a video of these costs; None for no limit.

        Without offloading it is what tiles take with every weight on the device. "model" keeps the weights of the
        present stage there, and computes as if there were no limit. "sequential" and "group" take the smallest budget
        there is: for whole frames, or with `tiling` for tiles.
        """
        if device.type != "cuda" or (self.offload is None and not self.tiling):
            return None
        return least_budget(
            costs(), machine_named(gpu), held=self.offload is None, streaming=self.offload in STREAMING,
            tiling=self.tiling,
        )  # fmt: skip

    def __str__(self) -> str:
        return " with ".join(
            text for text, on in ((f"{self.offload} offload", self.offload), ("tiled decode", self.tiling)) if on
        ) or "no memory saver"  # fmt: skip


class Offloading:
    """The methods of diffusers that save memory, and what they have become."""

    _savers = Savers()
    _granted: int | None = None  # bytes of the device that an engine folder was opened with
    vae: Any

    @property
    def engine(self) -> ConsisID:
        """What runs the components."""
        raise NotImplementedError

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Weights are on the device for the stage that uses them, and computing is as fast as without."""
        self._offload("model", gpu_id, device)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """The least memory: weights come while the layers before them compute."""
        self._offload("sequential", gpu_id, device)

    def enable_group_offload(self, onload_device: Any = "cuda", *args: Any, **kwargs: Any) -> None:
        """As enable_sequential_cpu_offload: the plan groups and streams as fits, whatever groups are asked for."""
        self._offload("group", None, onload_device)

    def remove_all_hooks(self) -> None:
        """No offloading from now on."""
        self._savers = replace(self._savers, offload=None, device=None)

    def maybe_free_model_hooks(self) -> None:
        """Nothing has to be freed: what a stage of the plan has brought leaves with it."""

    def _offload(self, kind: str, gpu_id: int | None, device: Any) -> None:
        if device is None and torch.cuda.is_available():
            device = torch.device("cuda", gpu_id) if gpu_id is not None else "cuda"
        elif device is None or not torch.cuda.is_available():
            device = "cpu"
        self._to_host()
        self._savers = Savers(kind, check_device(device), self._tiling)
        self.explain_memory()

    def _to_host(self) -> None:
        """The components' weights leave the device."""
        raise NotImplementedError

    @property
    def _tiling(self) -> bool:
        return bool(getattr(self.vae, "use_tiling", False))

    @property
    def savers(self) -> Savers:
        """What is turned on at present; vae.enable_tiling() is part of it."""
        return replace(self._savers, tiling=self._tiling)

    @property
    def decode_mode(self) -> str | None:
        """How is decoded: whole frames where memory is saved without tiling, else as the plan says."""
        return "whole" if self._savers.offload is not None and not self._tiling else None

    def explain_memory(self) -> str:
        """One line, for the log too: what the savers have become, and what the plan predicts for the model's own
        video."""
        engine, savers = self.engine, self.savers
        if engine.device.type != "cuda":
            line = f"{savers}: there is no GPU here, so nothing changes."
        else:
            costs = engine.costs(engine.shape, 1, 50, True)
            gpu = engine.manifest.provenance.get("gpu", "")
            budget = self._budget(engine)
            made = plan(budget, costs, machine_named(gpu), tiling=savers.tiling)
            limit = "no limit" if budget is None else f"a budget of {show(budget)}"
            line = (
                f"{savers}: {limit} for {engine.shape} ({made.mode}), predicted peak {show(made.peak)}, "
                f"{made.seconds:.1f} s at the speeds of {made.machine.name}."
            )
        LOG.info(line)
        return line

    def _budget(
        self, engine: Engine, shape: VideoShape | None = None, batch: int = 1, steps: int = 50, guided: bool = True
    ) -> int | None:
        """Bytes of the device for such videos: a saver's, or without one what the folder was opened with."""
        savers, gpu = self.savers, engine.manifest.provenance.get("gpu", "")
        if savers.offload is None and not savers.tiling:
            return self._granted
        return savers.budget(engine.device, gpu, lambda: engine.costs(shape or engine.shape, batch, steps, guided))


def least_budget(sizes: Costs, machine: Machine, *, held: bool, streaming: bool, tiling: bool) -> int:
    """The smallest budget, bytes, of plans of a kind.

    Args:
        held: all weights stay on the device; else they leave it with their stage.
        streaming: weights may stream in a stage, and guidance and feed-forward be cut. Else a stage computes as it
            would without a budget.
    """
    peaks = []
    for stage in sizes.stages:
        ways = candidates(stage, sizes.granule, machine, None if streaming else "batched", tiling, held)
        peaks.append(min(way.peak for way in ways if streaming or (not way.streamed and way.rows == 1)))
    return max(peaks) + sizes.overhead + (aligned(sizes.weights, sizes.granule) if held else 0)
