"""What the loop of joint_attention executes with each of its options, read from the disassembly without a GPU:
`python -m consisid.kernels.aot.instructions`.

Attention is arithmetic alone, so that its time is no less than that of the unit with the most to do. For 128 x 128
scores of head_dim 64, whatever the size of a block, the table says how many cycles of a multiprocessor its units need:

    tensor    the two matrix products
    exps      the exponentials that are left to the special-function units, 16 a cycle on every architecture here (CUDA
              C++ Programming Guide, throughput of arithmetic instructions)
    issue     all instructions, of four warps a cycle

`bound` is the largest of them: what a time cannot be below, and not a prediction of it, because one unit waits for
another unless other warps fill the gap. `programs` is how many fit onto a multiprocessor by their registers and shared
memory. `loads` is not in the bound: bytes a cycle that a multiprocessor reads of keys and values, when it is that fast.
No two programs share them, so half the queries in a program are twice the bytes. The L2 cache of an A100 gives each of
its 108 multiprocessors 47 bytes a cycle (5120 in all, NVIDIA A100 whitepaper); of later ones no figure is stated.

instructions.json keeps the table; `--check` compares with it. It holds for one version of Triton, as resources.json.
"""

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from .. import dispatch
from .._triton import INSTALLED, triton
from ..joint_attention import LOG2_E, by_kernel
from ..tools.cases import FULL, cases
from .record import record
from .resources import SHARED, TENSOR, compile_for, run_tool
from .sass import count_products, main_loop, product_flops

PATH = Path(__file__).with_name("instructions.json")
SCORES = 128 * 128
DIM = FULL.dim
ISSUE, EXPS = 4 * 32, 16  # threads a cycle and multiprocessor
# FLOPs of bf16 products with sums in float32, a cycle and multiprocessor: the data sheets' dense peak by boost clock
# and number of multiprocessors of A100, L40S, H100, B200 and RTX PRO 6000. GeForce cards of 8.9 and 12.0 have half.
PRODUCTS = {80: 2048, 89: 1024, 90: 4096, 100: 8192, 120: 1024}
REGISTERS, WARPS = 65536, {80: 64, 89: 48, 90: 64, 100: 64, 120: 48}  # of a multiprocessor
RESERVED = 1024  # bytes of shared memory that each program costs besides its own
MOVES = ("MOV", "SEL", "PRMT")
BARRIERS = ("BAR", "SYNCS", "DEPBAR", "WARPSYNC")
ALIKE = 1.05  # bounds within this are not told apart by counting
Table = dict[str, dict[str, dict[str, float]]]  # architecture, options, what is in Row


@dataclass(frozen=True)
class Row:
    """One set of options on one architecture.

    Attributes:
        instructions, mufu: executed for each score, all of them and on the special-function units.
        products, moves, barriers, waits: of a warp for each block of scores: matrix products, copies of registers,
            barriers of all kinds, and waits for products; more than four waits are products one after the other.
        registers: of a thread.
        spills: instructions in all of the kernel.
        shared: bytes of a program.
        programs: that fit onto a multiprocessor.
        tensor, exps, issue, bound: cycles for 128 x 128 scores.
        loads: bytes a cycle.
    """

    instructions: float
    mufu: float
    products: float
    moves: float
    barriers: float
    waits: float
    registers: int
    spills: int
    shared: int
    programs: int
    tensor: int
    exps: int
    issue: int
    bound: int
    loads: int


def variants(arch: int) -> Iterator[dispatch.Config]:
    """The default row, and what it may have to give way to or took the place of."""
    default = dispatch.default_config((arch // 10, arch % 10), torch.bfloat16)
    yield default
    if arch in (80, 89, 120):
        yield replace(default, polynomial=4)
        yield replace(default, ahead=True)
        yield dispatch.Config(128, 128, 8, 2)
        return
    wide = dispatch.Config(128, 128, 8, 2, descriptors=True)
    found = [wide, replace(wide, ahead=True), replace(wide, polynomial=4, ahead=True)]
    if arch == 90:
        unrolled = replace(wide, ahead=True, unrolled=True)
        found += [replace(wide, num_stages=3, polynomial=4, ahead=True), unrolled, replace(unrolled, polynomial=8)]
        found += [replace(unrolled, descriptors=False), dispatch.Config(64, 128, 4, 2, descriptors=True)]
        found += [replace(wide, block_n=256), replace(wide, block_m=256)]
        found += [replace(wide, ahead=True, producer=True)]
    else:
        found += [replace(wide, polynomial=4), replace(default, polynomial=0), replace(default, ahead=False)]
    yield from (config for config in found if config != default)


def measure(config: dispatch.Config, arch: int) -> Row:
    q, k, v, scale = next(case for case in cases(FULL, "meta") if case.name == "joint_attention").arguments
    if config.producer:
        from ..joint_attention_gluon import launch_gluon

        options = (scale * LOG2_E, config.block_n, config.num_stages)
        launches = record(launch_gluon, q, k, v, torch.empty_like(q), *options)
    else:
        launches = record(by_kernel, q, k, v, scale, config)
    compiled = compile_for(launches[0], arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = run_tool("cuobjdump", "-res-usage", file.name)
        code = run_tool("nvdisasm", "-c", "-ndf", file.name)
    found = re.search(r"REG:(\d+)", usage)
    assert found is not None, f"cuobjdump reported no registers: {usage}"
    registers, loop = int(found[1]), main_loop(code)
    blocks = 2 if config.ahead and config.unrolled else 1
    # With a producer the loop is that of one of two groups of warps, and there are the producer's warps besides.
    warps, scores = config.num_warps, config.block_m * config.block_n * blocks
    if config.producer:
        warps, scores = warps // 2, scores // 2
    flops = product_flops(loop, warps)
    if flops not in (0, 4 * DIM * scores) or not count_products(loop):
        raise ValueError(f"The loop of {config} on sm_{arch} is not what it was taken for: {flops} FLOPs of products.")
    kinds = Counter(one.kind for one in loop)
    moves = sum(kinds[kind] for kind in MOVES) + sum(one.name.startswith("IMAD.MOV") for one in loop)
    waits = sum(one.name.startswith("WARPGROUP.DEPBAR") for one in loop)
    each = warps * 32 / scores
    cycles = {
        "tensor": 4 * DIM * SCORES / PRODUCTS[arch],
        "exps": kinds["MUFU"] * each * SCORES / EXPS,
        "issue": len(loop) * each * SCORES / ISSUE,
    }
    bound = max(cycles.values())
    return Row(
        instructions=round(len(loop) * each, 2),
        mufu=round(kinds["MUFU"] * each, 3),
        products=count_products(loop) / blocks,
        moves=moves / blocks,
        barriers=sum(kinds[kind] for kind in BARRIERS) / blocks,
        waits=waits / blocks,
        registers=registers,
        spills=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        shared=compiled.metadata.shared,
        programs=count_programs(arch, registers, compiled.metadata.num_warps, compiled.metadata.shared),
        **{unit: round(spent) for unit, spent in cycles.items()},
        bound=round(bound),
        loads=round(SCORES / config.block_m * 2 * DIM * q.element_size() / bound),
    )


def count_programs(arch: int, registers: int, warps: int, shared: int) -> int:
    """How many programs fit onto a multiprocessor. Registers are given out to a warp in multiples of 256."""
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = (SHARED[arch] + RESERVED) // (shared + RESERVED)
    return min(by_registers, by_shared, WARPS[arch] // warps)


def make(architectures: Sequence[int]) -> Table:
    return {
        f"sm_{arch}": {str(config): asdict(measure(config, arch)) for config in variants(arch)}
        for arch in architectures
    }


def faults(arch: str, rows: dict[str, dict[str, float]]) -> list[str]:
    """What is wrong with a default row, whatever it was before: the first of an architecture."""
    name, row = next(iter(rows.items()))
    found = []
    if row["spills"]:
        found.append(f"spills registers ({row['spills']} instructions)")
    if row["waits"] > 4:
        found.append(f"waits {row['waits']} times for products: they run one after the other")
    if not row["programs"]:
        found.append("does not fit onto a multiprocessor")
    sound = {other: each for other, each in rows.items() if not each["spills"] and each["waits"] <= 4}
    better = min(sound, key=lambda other: sound[other]["bound"], default=name)
    if row["bound"] > ALIKE * rows[better]["bound"]:
        found.append(f"is bound at {row['bound']} cycles, {better} at {rows[better]['bound']}")
    return [f"{arch}, {name}, the default, {fault}" for fault in found]


def regressions(kept: Table, made: Table) -> list[str]:
    """What is worse in `made` than in `kept`, one line each."""
    lines = []
    for arch, rows in made.items():
        lines += faults(arch, rows)
        for name, now in rows.items():
            before = kept.get(arch, {}).get(name)
            if before is None:
                lines.append(f"{arch}, {name} is not in {PATH.name}: run make kernels")
                continue
            worse = [key for key in now if key not in ("programs", "loads") and now[key] > before[key]]
            lines += [f"{arch}, {name}: {key} rose from {before[key]} to {now[key]}" for key in worse]
    return lines


def show(table: Table) -> str:
    """The table for people."""
    columns = list(Row.__dataclass_fields__)
    lines = []
    for arch, rows in table.items():
        lines.append(f"{arch:72s}" + "".join(f"{name[:8]:>9s}" for name in columns))
        for name, row in rows.items():
            lines.append(f"  {name:70s}" + "".join(f"{row[column]:9g}" for column in columns))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Count what the loop of joint_attention executes.")
    parser.add_argument("--check", action="store_true", help=f"compare with {PATH.name} instead of writing it")
    parser.add_argument("--arch", type=int, nargs="+", default=list(TENSOR), choices=list(TENSOR), metavar="SM")
    options = parser.parse_args(arguments)
    if not INSTALLED:
        print("Triton is not installed; it compiles the kernels: pip install 'consisid[dev]'", file=sys.stderr)
        return 2
    kept = json.loads(PATH.read_text()) if PATH.exists() else {"triton": None, "rows": {}}
    if options.check and kept["triton"] != triton.__version__:
        versions = f"was made with triton {kept['triton']}, this is {triton.__version__}"
        print(f"{PATH.name} {versions}; install that one, or make the table again: make kernels", file=sys.stderr)
        return 2
    made = make(options.arch)
    if options.check:
        lines = regressions(kept["rows"], made)
        print("\n".join(lines) or f"{sum(map(len, made.values()))} variants as in {PATH.name} or better")
        return 1 if lines else 0
    lines = [line for arch, rows in made.items() for line in faults(arch, rows)]
    print("\n".join([show(made), *lines]))
    if list(options.arch) == list(TENSOR):
        PATH.write_text(json.dumps({"triton": triton.__version__, "rows": made}, indent=1) + "\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
