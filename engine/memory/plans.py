"""What a plan of the memory says: per stage what is resident, what streams, and what that costs."""

from dataclasses import dataclass

from .budget import show
from .costs import Key
from .simulate import Machine


@dataclass(frozen=True)
class StagePlan:
    """One stage of a plan.

    Attributes:
        resident, streamed: weights by graph and layer, in the order of execution; what else a stage has is resident.
        buffers, buffer_bytes: what streams goes through.
        cfg: "batched" or "sequential".
        tile: height and width of the decoder's tiles in latent pixels, None for whole frames.
        rows: pieces of the blocks' feed-forward, 1 for whole.
        peak: predicted bytes of device memory.
        arena: those of them in which calls find room for what they make.
        seconds: predicted, copies that nothing hides included.
        stall: seconds per pass that calls wait for copies, once all that is resident has arrived.
        copied: bytes from host to device per video.
        ahead: the first units of the stage that follows, which come while this one ends; their memory counts in `peak`.
        sent: bytes that pass between devices per video, of the busiest.
        holders: devices of which each keeps a part of what streams; 1 where that comes from the host.
    """

    name: str
    resident: tuple[Key, ...]
    streamed: tuple[Key, ...]
    buffers: int
    buffer_bytes: int
    cfg: str
    tile: tuple[int, int] | None
    peak: int
    arena: int
    seconds: float
    stall: float
    copied: int
    rows: int = 1
    ahead: tuple[Key, ...] = ()
    sent: int = 0
    holders: int = 1

    @property
    def order(self) -> tuple[bool, bool, int, int, int]:
        """Among equally fast candidates: guidance at once, whole frames, nothing from other devices, which
        computing shares their processors with, few bytes copied, little memory."""
        return self.cfg != "batched", self.tile is not None, self.holders, self.copied, self.peak


@dataclass(frozen=True)
class MemoryPlan:
    """What a run holds on its device, and when.

    Attributes:
        budget: bytes, None for no limit.
        context: bytes of the peak that are CUDA's own, and that PyTorch neither counts nor limits.
        held: all weights stay on the device between stages and videos.
        machine: whose speeds the seconds are computed with.
    """

    label: str
    budget: int | None
    machine: Machine
    stages: tuple[StagePlan, ...]
    held: bool
    context: int = 0

    def stage(self, name: str) -> StagePlan:
        """The stage called `name`."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def peak(self) -> int:
        """Predicted peak, bytes."""
        return max(stage.peak for stage in self.stages)

    @property
    def reserved(self) -> int:
        """Predicted peak of what PyTorch reserves, bytes."""
        return self.peak - self.context

    @property
    def seconds(self) -> float:
        """Predicted time of a video."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def cfg(self) -> str:
        return self.stage("denoise").cfg

    @property
    def tile(self) -> tuple[int, int] | None:
        return self.stage("decode").tile

    @property
    def rows(self) -> int:
        return self.stage("denoise").rows

    @property
    def mode(self) -> str:
        """In a few words, for stats."""
        if self.held:
            return "resident"
        loop = self.stage("denoise")
        if not loop.streamed:
            return "stages hand over"
        source = "" if loop.holders == 1 else f" from {loop.holders} devices"
        return f"{len(loop.streamed)} of {len(loop.streamed) + len(loop.resident)} blocks stream{source}"

    def __str__(self) -> str:
        """The plan as a table."""
        budget = "no limit" if self.budget is None else show(self.budget)
        lines = [
            f"{self.label}: budget {budget}, predicted peak {show(self.peak)}, {self.seconds:.1f} s at the speeds of "
            f"{self.machine.name} ({self.machine.sources})",
            f"  {'stage':<9} {'resident':>8} {'streams':>8} {'buffers':>14}  {'mode':<26} {'peak':>10} {'seconds':>9} "
            f"{'stall/pass':>10}",
        ]
        for stage in self.stages:
            ring = f"{stage.buffers} x {show(stage.buffer_bytes)}" if stage.streamed else "-"
            mode = ""
            if stage.name == "denoise":
                mode = stage.cfg if stage.rows == 1 else f"{stage.cfg}, {stage.rows} row pieces"
            if stage.name == "decode":
                mode = "whole" if stage.tile is None else f"tile {stage.tile[0]}x{stage.tile[1]}"
            lines.append(
                f"  {stage.name:<9} {len(stage.resident):>8} {len(stage.streamed):>8} {ring:>14}  {mode:<26} "
                f"{show(stage.peak):>10} {stage.seconds:>9.2f} {stage.stall:>10.4f}"
            )
        kept = "all weights stay on the device" if self.held else "weights leave with their stage"
        sent = sum(stage.sent for stage in self.stages)
        more = f"; the busiest device sends or receives {show(sent)}" if sent else ""
        parts = {stage.holders for stage in self.stages} - {1}
        more += "".join(f"; each of {count} devices keeps a part of what streams" for count in parts)
        return "\n".join([*lines, f"  {kept}; resident and streams count layers{more}"])
