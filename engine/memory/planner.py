"""A budget of device memory becomes a plan: per stage what is resident, what streams, and what that costs.

Pure arithmetic on memory/costs.py and the speeds of a machine: nothing is loaded, no device is asked. Every stage has
its candidates; a plan takes the fastest of those that fit, so a larger budget, whose candidates include those of a
smaller one, is never slower.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

from ..errors import MemoryBudgetError
from .allocator import aligned, part_bytes
from .budget import show
from .costs import ROWS, Costs, Key, StageCosts
from .plans import MemoryPlan, StagePlan
from .simulate import UNKNOWN, Machine, replay, spread

BUFFERS = (2, 3, 4)
# What blocks in rows are assumed to take, against compiled ones, until a GPU has told: they run operator by operator.
ROWS_PRICE = 1.1
# What tiles take, against the same arithmetic in whole frames: 2.04 s for 0.875 s on an H200, where 1.35 times as many
# pixels are decoded (bench/reports/h200.md).
TILE_PRICE = 1.7


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
    # Where devices reach each other no faster than the host, nothing is gained by asking them.
    sources = [1, stage.holders] if stage.holders > 1 and (machine.wire or 0) > machine.link else [1]
    counts = [0] if held else [0, *range(2, len(stage.units) + 1)]
    cuts = [(1, stage.working), (ROWS, stage.rows)] if stage.rows else [(1, stage.working)]
    for mode, cut, (rows, held_by) in product(modes, (None, *stage.tiles) if tiling else (None,), cuts):
        working = dict(held_by)[mode] if cut is None else cut.working
        more = 1.0 if cut is None else TILE_PRICE * cut.arithmetic
        passes = stage.together if mode == "batched" and len(stage.working) > 1 else stage.passes
        price = ROWS_PRICE if rows > 1 else 1.0
        for count, buffers, holders in product(counts, BUFFERS, sources):
            if buffers > max(count, BUFFERS[0]) or (count == 0 and (buffers > BUFFERS[0] or holders > 1)):
                continue
            streamed = spread(stage.units, count)
            parts = {unit.key: part_bytes(unit.bytes, holders) for unit in stage.units} if holders > 1 else {}
            kept = sum(aligned(parts[key], granule) for key in streamed) if parts else 0
            buffer = aligned(holders * max(parts.values()), granule) if parts else largest
            moving = sum(reserved[key] for key in streamed)
            units = [] if held else stage.units
            flops = stage.flops * more + (sum(unit.flops for unit in stage.units) if held else 0.0)
            run = replay(
                units, streamed, buffers, passes, machine,
                fixed=0 if held else stage.fixed, flops=price * flops, samples=price * stage.passes / passes,
                sent=stage.sent, holders=holders,
            )  # fmt: skip
            ring = buffers * buffer if count else 0
            weights = 0 if held else aligned(stage.fixed, granule) + total - moving + kept + ring
            gathered = (holders - 1) * passes * sum(parts[key] for key in streamed) if parts else 0
            way = StagePlan(
                name=stage.name,
                resident=tuple(unit.key for unit in stage.units if unit.key not in streamed),
                streamed=tuple(unit.key for unit in stage.units if unit.key in streamed),
                buffers=buffers if count else 0, buffer_bytes=buffer if count else 0,
                cfg=mode, tile=None if cut is None else cut.tile, rows=rows,
                peak=weights + stage.data + working, arena=working,
                seconds=run.seconds, stall=run.stall[1], copied=run.bytes, sent=stage.sent * stage.passes + gathered,
                holders=holders,
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
    if stage.holders > 1:  # what comes from other devices comes when all are there
        return (), 0
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
