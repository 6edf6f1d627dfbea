"""A budget of device memory becomes a plan: per stage what is resident, what streams, and what that costs.

Pure arithmetic on memory/costs.py and the speeds of a machine: nothing is loaded, no device is asked. Every stage has
its candidates; a plan takes the fastest of those that fit, so a larger budget, whose candidates include those of a
smaller one, is never slower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from ..errors import MemoryBudgetError
from .allocator import aligned
from .budget import show
from .costs import ROWS, Costs, Key, StageCosts
from .simulate import UNKNOWN, Machine, replay, spread

BUFFERS = (2, 3, 4)
# What blocks in rows are assumed to take, against compiled ones, until a GPU has told: they run operator by operator.
ROWS_PRICE = 1.1
# What tiles take, against the same arithmetic in whole frames: 2.04 s for 0.875 s on an H200, where 1.35 times as many
# pixels are decoded (bench/reports/h200.md).
TILE_PRICE = 1.7


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

    @property
    def order(self) -> tuple[int, bool, int, int]:
        """Among equally fast candidates: guidance at once, whole frames, few bytes copied, little memory."""
        return self.cfg != "batched", self.tile is not None, self.copied, self.peak


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
        return f"{len(loop.streamed)} of {len(loop.streamed) + len(loop.resident)} blocks stream"

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
        return "\n".join([*lines, f"  {kept}; resident and streams count layers{more}"])


@lru_cache(maxsize=4096)
def candidates(
    stage: StageCosts, granule: int, machine: Machine, cfg: str | None, tiling: bool, held: bool
) -> tuple[StagePlan, ...]:
    """Every way to run a stage; the peak is without the sizes' overhead, and when `held` without weights.

    Args:
        granule: memory for weights is reserved in multiples of it.
    """
    found = []
    modes = [mode for mode, _ in stage.working if cfg in (None, mode) or len(stage.working) == 1]
    reserved = {unit.key: aligned(unit.bytes, granule) for unit in stage.units}
    largest = max(reserved.values(), default=0)
    total = sum(reserved.values())
    counts = [0] if held else [0, *range(2, len(stage.units) + 1)]
    cuts = [(1, stage.working), (ROWS, stage.rows)] if stage.rows else [(1, stage.working)]
    for mode, cut, (rows, held_by) in product(modes, (None, *stage.tiles) if tiling else (None,), cuts):
        working = dict(held_by)[mode] if cut is None else cut.working
        more = 1.0 if cut is None else TILE_PRICE * cut.arithmetic
        passes = stage.together if mode == "batched" and len(stage.working) > 1 else stage.passes
        price = ROWS_PRICE if rows > 1 else 1.0
        for count, buffers in product(counts, BUFFERS):
            if buffers > max(count, BUFFERS[0]) or (count == 0 and buffers > BUFFERS[0]):
                continue
            streamed = spread(stage.units, count)
            moving = sum(reserved[key] for key in streamed)
            units = [] if held else stage.units
            flops = stage.flops * more + (sum(unit.flops for unit in stage.units) if held else 0.0)
            run = replay(
                units, streamed, buffers, passes, machine,
                fixed=0 if held else stage.fixed, flops=price * flops, samples=price * stage.passes / passes,
                sent=stage.sent,
            )  # fmt: skip
            ring = buffers * largest if count else 0
            weights = 0 if held else aligned(stage.fixed, granule) + total - moving + ring
            way = StagePlan(
                name=stage.name,
                resident=tuple(unit.key for unit in stage.units if unit.key not in streamed),
                streamed=tuple(unit.key for unit in stage.units if unit.key in streamed),
                buffers=buffers if count else 0, buffer_bytes=largest if count else 0,
                cfg=mode, tile=None if cut is None else cut.tile, rows=rows,
                peak=weights + stage.data + working, arena=working,
                seconds=run.seconds, stall=run.stall[1], copied=run.bytes, sent=stage.sent * stage.passes,
            )  # fmt: skip
            found.append(way)
    return tuple(sorted(found, key=lambda plan: (float(f"{plan.seconds:.9g}"), plan.order)))  # sums differ behind


def plan(
    budget: int | None, sizes: Costs, machine: Machine = UNKNOWN, *, cfg: str | None = None, tiling: bool = False
) -> MemoryPlan:
    """The fastest way to make a video within a budget.

    Args:
        budget: bytes of device memory, None for no limit.
        sizes: of the video.
        machine: its speeds decide between candidates and predict the seconds.
        cfg: a mode that was asked for; None leaves the choice to the plan.
        tiling: whether the decoder can be cut into tiles.

    Raises:
        MemoryBudgetError: not even the smallest plan fits; the message names its budget.
    """
    options = {
        held: [candidates(stage, sizes.granule, machine, cfg, tiling, held) for stage in sizes.stages]
        for held in (True, False)
    }
    found = []
    for held, stages in options.items():
        extra = sizes.overhead + (aligned(sizes.weights, sizes.granule) if held else 0)
        chosen = _choose(stages, extra, budget)
        if chosen is not None:
            if budget is not None and not held:
                chosen = look_ahead(chosen, sizes, budget)
            found.append(MemoryPlan(sizes.label, budget, machine, chosen, held, sizes.context))
    if not found:
        worst, bytes_needed = smallest(sizes, machine, cfg, tiling)
        needed = show(bytes_needed)
        raise MemoryBudgetError(
            f"memory={show(budget or 0)} is too little for {sizes.label}: the stage {worst} needs {needed}. The "
            f"smallest budget that works is {needed}."
        )
    return min(found, key=lambda each: (each.seconds, not each.held))


def smallest(sizes: Costs, machine: Machine, cfg: str | None, tiling: bool) -> tuple[str, int]:
    """The stage that no plan can make smaller, and the bytes that it needs: the smallest budget."""
    least = {
        stage.name: min(way.peak for way in candidates(stage, sizes.granule, machine, cfg, tiling, False))
        for stage in sizes.stages
    }
    worst = max(least, key=lambda name: least[name])
    return worst, least[worst] + sizes.overhead


def _choose(stages: Sequence[tuple[StagePlan, ...]], extra: int, budget: int | None) -> tuple[StagePlan, ...] | None:
    """Per stage the first candidate that fits, with `extra` added to its peak; None where none does."""
    chosen = []
    for ways in stages:
        way = next((way for way in ways if budget is None or way.peak + extra <= budget), None)
        if way is None:
            return None
        chosen.append(_raised(way, extra))
    return tuple(chosen)


def _raised(stage: StagePlan, extra: int, ahead: tuple[Key, ...] = ()) -> StagePlan:
    return StagePlan(**{**vars(stage), "peak": stage.peak + extra, "ahead": ahead})


def look_ahead(stages: Sequence[StagePlan], sizes: Costs, budget: int) -> tuple[StagePlan, ...]:
    """The stages, in what a budget leaves of each the first units of the one that follows it.

    The seconds stay as they are: what is gained is left out, so that more memory is never predicted to be slower.
    """
    found = []
    for stage, following, size in zip(stages, stages[1:], sizes.stages[1:], strict=False):
        keys, taken = _leading(following, size, budget - stage.peak, sizes.granule)
        found.append(_raised(stage, taken, keys))
    return (*found, *stages[-1:])


def _leading(stage: StagePlan, size: StageCosts, room: int, granule: int) -> tuple[tuple[Key, ...], int]:
    """The first units of a stage whose buffers fit into `room` bytes, and the bytes of those buffers."""
    keys: list[Key] = []
    taken, free = 0, stage.buffers
    for unit in size.units:
        streams = unit.key in stage.streamed
        needed = stage.buffer_bytes if streams else aligned(unit.bytes, granule)
        if taken + needed > room or (streams and not free):
            break
        free -= streams
        taken += needed
        keys.append(unit.key)
    return tuple(keys), taken


def smaller(
    than: MemoryPlan, sizes: Costs, *, cfg: str | None = None, tiling: bool = False, step: float = 0.9
) -> MemoryPlan | None:
    """The fastest plan whose predicted peak is at most `step` of another's, or else the smallest; None when that is no
    smaller than the other."""
    least = smallest(sizes, than.machine, cfg, tiling)[1]
    if least >= than.peak:
        return None
    return plan(max(least, int(than.peak * step)), sizes, than.machine, cfg=cfg, tiling=tiling)
