"""Plans for any budget: within it, never slower for more, and refused with the budget that would do."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.plans import GIB, KINDS, sizes_of

from consisid.engine.errors import InputError, MemoryBudgetError
from consisid.engine.memory.allocator import aligned, part_bytes
from consisid.engine.memory.budget import parse, show
from consisid.engine.memory.costs import Unit
from consisid.engine.memory.planner import candidates, plan, smaller
from consisid.engine.memory.simulate import MACHINES, UNKNOWN, Machine, machine_named, replay, spread

pytestmark = pytest.mark.slow

BUDGETS = st.integers(2 * GIB, 80 * GIB)


def attempt(budget, *arguments, **options):
    try:
        return plan(budget, *arguments, **options)
    except MemoryBudgetError as error:
        return error


@settings(max_examples=examples(30), deadline=None)
@given(
    budgets=st.tuples(BUDGETS, BUDGETS).map(sorted),
    kind=st.sampled_from(sorted(KINDS)),
    machine=st.sampled_from(sorted(MACHINES)),
    tiling=st.booleans(),
    cfg=st.sampled_from([None, "batched", "sequential"]),
)
def test_any_budget(budgets, kind, machine, tiling, cfg):
    little, much = (attempt(b, sizes_of(kind), MACHINES[machine], tiling=tiling, cfg=cfg) for b in budgets)
    for budget, found in zip(budgets, (little, much), strict=True):
        if isinstance(found, MemoryBudgetError):
            least = parse(str(found).split("budget that works is ")[1].rstrip("."), 0)
            assert least > budget
            smallest = plan(least, sizes_of(kind), MACHINES[machine], tiling=tiling, cfg=cfg)
            with pytest.raises(MemoryBudgetError):
                plan(smallest.peak - GIB // 50, sizes_of(kind), MACHINES[machine], tiling=tiling, cfg=cfg)
        else:
            assert found.peak <= budget
            assert cfg in (None, found.cfg)
            assert tiling or found.tile is None
    if not isinstance(little, MemoryBudgetError):
        assert much.seconds <= little.seconds


def ahead_bytes(found, made, stage) -> int:
    """What the first units of the next stage take, by that stage's own plan and sizes."""
    if not stage.ahead:
        return 0
    following = made.stages[made.stages.index(stage) + 1]
    units = {unit.key: aligned(unit.bytes, found.granule) for size in found.stages for unit in size.units}
    streamed = [key for key in stage.ahead if key in following.streamed]
    assert list(stage.ahead) == sorted([*following.resident, *following.streamed])[: len(stage.ahead)]
    assert len(streamed) <= following.buffers
    return len(streamed) * following.buffer_bytes + sum(units[key] for key in stage.ahead if key not in streamed)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_peak_is_the_sum_of_its_parts(kind):
    found = sizes_of(kind)
    for budget in (4, 6, 12, 20):
        made = attempt(budget * GIB, found, MACHINES["rtx3090"], tiling=True)
        if isinstance(made, MemoryBudgetError) or made.held:
            continue
        for stage, size in zip(made.stages, found.stages, strict=True):
            resident = sum(aligned(unit.bytes, found.granule) for unit in size.units if unit.key in stage.resident)
            ring = stage.buffers * stage.buffer_bytes
            known = (
                found.overhead
                + aligned(size.fixed, found.granule)
                + size.data
                + resident
                + ring
                + ahead_bytes(found, made, stage)
            )
            assert sorted(stage.resident + stage.streamed) == sorted(unit.key for unit in size.units)
            assert bool(stage.streamed) == bool(stage.buffers)
            if stage.tile is None:
                assert stage.peak == known + dict(size.working)[stage.cfg]


def test_what_comes_ahead_uses_the_room_there_is():
    """Within the budget, with the seconds of the plan without it, and nothing where everything is held anyway."""
    found, seen = sizes_of("preview"), 0
    for budget in (6 * GIB, 10 * GIB, 16 * GIB):
        made = plan(budget, found, MACHINES["rtx3090"], tiling=True)
        assert not made.held
        assert made.peak <= budget
        seen += sum(bool(stage.ahead) for stage in made.stages)
        for stage, following, size in zip(made.stages, made.stages[1:], found.stages[1:], strict=False):
            rest = [unit for unit in size.units if unit.key not in stage.ahead]
            if rest and rest[0].key in following.resident:
                assert stage.peak + aligned(rest[0].bytes, found.granule) > budget
            elif rest:
                full = len(set(stage.ahead) & set(following.streamed)) == following.buffers
                assert full or stage.peak + following.buffer_bytes > budget
    assert seen >= 6
    for held in (plan(None, found), plan(80 * GIB, found)):
        assert held.held
        assert not any(stage.ahead for stage in held.stages)


def test_larger_requests_need_more():
    """More steps, more videos and a larger frame never need less at the same plan."""
    base = plan(None, sizes_of("tiny")).peak
    assert plan(None, sizes_of("tiny", steps=500)).peak >= base
    assert plan(None, sizes_of("tiny", batch=64)).peak > base
    small, large = (plan(None, sizes_of(kind)).peak for kind in ("preview, small", "preview"))
    assert small < large


def test_no_limit_holds_everything():
    found = plan(None, sizes_of("preview"))
    assert found.held
    assert found.mode == "resident"
    assert found.cfg == "batched"
    assert found.tile is None


def test_smaller_plans_end():
    found, count = plan(None, sizes_of("preview"), tiling=True), 0
    while (following := smaller(found, sizes_of("preview"), tiling=True)) is not None:
        assert following.peak < found.peak
        found, count = following, count + 1
    assert count > 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [(5, 5), ("8GiB", 8 * GIB), ("8 gib", 8 * GIB), ("1.5GB", 1_500_000_000), ("700MiB", 700 * 2**20), ("123", 123),
     (None, None), ("auto", 3 * GIB)],
)  # fmt: skip
def test_budgets_are_read(given, expected):
    assert parse(given, 4 * GIB) == expected


@pytest.mark.parametrize("given", ["lots", "8 apples", "-1", 0, -5, "0GiB", True, "1.2.3GB", "auto"])
def test_no_budgets(given):
    with pytest.raises(InputError, match="memory="):
        parse(given, 0)


@given(st.integers(1, 2**45))
def test_a_shown_budget_is_enough(count):
    assert count <= parse(show(count), 0) <= count + GIB // 100 + 1


@pytest.mark.parametrize(
    ("gpu", "machine"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100pcie"),
        ("NVIDIA H100", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla T4", "t4"),
    ],
)
def test_machines_by_the_drivers_name(gpu, machine):
    assert machine_named(gpu).name == machine


@pytest.mark.parametrize(
    "gpu",
    [
        "", "NVIDIA L4", "NVIDIA L40", "NVIDIA T400 4GB", "NVIDIA GH200 480GB", "NVIDIA A100X",
        # A chip of less power under the same name, and a part of one.
        "NVIDIA GeForce RTX 5090 Laptop GPU", "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
    ],
)  # fmt: skip
def test_machines_that_are_not_known(gpu):
    assert machine_named(gpu) is UNKNOWN


@pytest.mark.parametrize(
    "gpu", ["NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL"]
)
def test_cards_do_not_reach_each_other_as_modules_do(gpu):
    found = machine_named(gpu)
    assert found.flops == machine_named(gpu.replace("PCIe", "").replace("NVL", "")).flops
    assert found.wire is None
    for module in ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200"):
        assert machine_named(module).wire > machine_named(module).link


def test_machines_are_as_fast_as_somebody_measured():
    """No row above the dense peak of a data sheet by more than what clocks above the nominal one give."""
    peaks = {"h200": 989, "h100": 989, "h100pcie": 756, "a100": 312, "l40s": 362, "rtx5090": 209.5, "rtx4090": 165.2,
             "rtx3090": 71, "t4": 65}  # fmt: skip
    assert set(peaks) == set(MACHINES)
    for name, machine in MACHINES.items():
        assert 0.6 * peaks[name] < machine.flops / 1e12 < 1.15 * peaks[name], name
        link = 16 if name == "t4" else 63 if "PCIe 5.0" in machine.sources else 31.5
        assert 0.8 * link < machine.link / 1e9 <= link, name


UNITS = tuple(Unit(("block", i), 10, 100.0) for i in range(4))


def test_replay_by_hand():
    """Four units, a second to copy each, two to compute: only the first copy shows. The other way round all do."""
    every = frozenset(unit.key for unit in UNITS)
    hidden = replay(UNITS, every, 2, 5, Machine("m", 50.0, 10.0, ""))
    assert hidden.seconds == pytest.approx(1 + 5 * 4 * 2)
    assert hidden.stall == pytest.approx((1.0, 0.0))
    assert hidden.bytes == 5 * 40
    shown = replay(UNITS, every, 2, 5, Machine("m", 100.0, 5.0, ""))
    assert shown.stall[1] == pytest.approx(4 * (2 - 1))
    assert shown.seconds == pytest.approx(1 + 5 * 4 * 2)
    half = replay(UNITS, spread(UNITS, 2), 2, 5, Machine("m", 100.0, 5.0, ""))
    assert half.stall[1] == pytest.approx(0.0)
    assert half.bytes == 40 + 4 * 20
    assert spread(UNITS, 2) == {("block", 0), ("block", 2)}


def test_replay_of_weights_that_devices_keep_together():
    """Each of two reads half of each unit, 0.5 s; then the other half takes 0.5 s, which a pass waits for once."""
    units = tuple(Unit(("block", i), 1024, 100.0) for i in range(4))
    every = frozenset(unit.key for unit in units)
    found = replay(units, every, 2, 5, Machine("m", 50.0, 1024.0, "", wire=1024.0), holders=2)
    assert found.seconds == pytest.approx(4 * 0.5 + 5 * (0.5 + 4 * 2))
    assert found.stall == pytest.approx((2.5, 0.5))
    assert found.bytes == 4 * 512
    slow = replay(units, every, 2, 5, Machine("m", 100.0, 1024.0, "", wire=256.0), holders=2)
    assert slow.stall[1] == pytest.approx(2 + 3 * (2 - 1))
    # What stays comes in its turn among the parts, and all before the first half of another device.
    mixed = replay(units, spread(units, 2), 2, 5, Machine("m", 50.0, 1024.0, "", wire=1024.0), holders=2)
    assert mixed.stall == pytest.approx((3 + 0.5, 0.5))
    assert mixed.bytes == 2 * 512 + 2 * 1024
    assert mixed.seconds == pytest.approx(3 + 5 * (0.5 + 4 * 2))


def test_what_devices_keep_together_is_in_the_peak():
    """A part of each block that streams, and a ring whose buffers hold the parts of all."""
    found = sizes_of("preview")
    stage = replace(next(each for each in found.stages if each.name == "denoise"), holders=3)
    sizes, largest = {unit.key: unit.bytes for unit in stage.units}, max(unit.bytes for unit in stage.units)
    seen = set()
    for way in candidates(stage, found.granule, MACHINES["h100"], "batched", False, False):
        kept = sum(aligned(part_bytes(sizes[key], way.holders), found.granule) for key in way.streamed)
        resident = sum(aligned(sizes[key], found.granule) for key in way.resident)
        buffer = aligned(way.holders * part_bytes(largest, way.holders), found.granule) if way.streamed else 0
        assert way.buffer_bytes == buffer
        given = aligned(stage.fixed, found.granule) + stage.data + way.arena + resident + way.buffers * buffer
        assert way.peak == given + (kept if way.holders > 1 else 0)
        gathered = (way.holders - 1) * stage.together * sum(part_bytes(sizes[key], way.holders) for key in way.streamed)
        assert way.sent == gathered
        seen.add((way.holders, bool(way.streamed)))
    assert seen == {(1, False), (1, True), (3, True)}


def test_the_dry_run_prints_the_plan(capsys):
    from consisid.export.cli import main

    assert main(["tiny", "--dry-run", "--device", "cpu", "--memory", "1GiB"]) == 0
    said = capsys.readouterr().out
    assert all(text in said for text in ("budget 1.00GiB, predicted peak", "resident", "streams", "denoise"))
    assert main(["tiny", "--dry-run", "--device", "cpu", "--memory", "1MiB"]) == 2
    assert "smallest budget that works" in capsys.readouterr().err
    assert main(["tiny", "--output", "nowhere", "--memory", "1GiB"]) == 2


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_without_a_limit_guidance_runs_at_once(steps):
    """As a run without a budget does: the order in which seconds are added up is no reason against it."""
    found = plan(None, sizes_of("preview", steps=steps), MACHINES["h200"], tiling=True)
    assert (found.cfg, found.tile, found.rows) == ("batched", None, 1)
