"""What every kernel takes of each GPU architecture, found without a GPU: `python -m consisid.kernels.aot.resources`.

The launchers run on meta tensors of full size and what they would have launched is compiled ahead of time for every
architecture, with the arguments' types, alignments and constants as they would be on a GPU. The disassembly, by the
tools in Triton's wheel, says how many registers a thread has, whether any are spilled, how much shared memory a
program asks for, which tensor-core instructions there are and whether any are in double precision. resources.json
keeps that; `--check` compares with it.

A number with a fraction is given to a kernel as a constant. As an argument Inductor would pass it as float64, where
Triton's launcher passes float32, and whatever it is added to would be computed in double precision: slowly, and with
other results than outside a package. Should a kernel have such an argument, it is compiled here as Inductor would.

A table holds for one version of Triton, because another has another compiler: with another, --check says so and exits
with 2, neither good nor bad.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .._triton import INSTALLED, triton
from .record import Launch, launches

PATH = Path(__file__).with_name("resources.json")
# Shared memory a program may have, in bytes, and the tensor-core instruction that is due.
SHARED = {80: 166912, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
TENSOR = {80: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}
SASS = {"mma": "HMMA", "wgmma": "HGMMA", "tcgen05": "UTCHMMA"}
DOUBLE = r"\bD(?:ADD|MUL|FMA|SETP|MNMX|MMA)\b|\.F64\b|64H\b"  # arithmetic, conversions, and the seeds of 1 / x
REGISTERS = 65536  # of a multiprocessor
TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
Table = dict[str, dict[str, dict[str, int]]]  # kernel, architecture, what is in Resources


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture. registers: of a thread; spills, mma, wgmma, tcgen05: instructions;
    shared: bytes of a program; fp64: instructions in double precision."""

    registers: int
    spills: int
    shared: int
    warps: int
    mma: int
    wgmma: int
    tcgen05: int
    fp64: int


def _type(value: Any) -> str:
    """Triton's name for the type of an argument, as its launcher would derive it; a float's as Inductor would."""
    if isinstance(value, Tensor):
        return "*" + TYPES[str(value.dtype).removeprefix("torch.")]
    if isinstance(value, float):
        return "fp64"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    block = ",".join(map(str, value.block_shape))
    layout = f",{value.layout!r}" if hasattr(value, "layout") else ""  # Gluon's says how it lies in shared memory
    return f"tensordesc<{TYPES[str(value.base.dtype).removeprefix('torch.')]}[{block}]{layout}>"


def compile_for(launch: Launch, arch: int, parameters: Sequence[str] | None = None) -> Any:
    """The compiled kernel. Like Triton's launcher, takes a 1 as a constant and notes what 16 divides.

    Args:
        parameters: the pointers that stay parameters; all else is a constant, and a pointer that is not named absent.
            None: as in a launch.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        one = isinstance(value, int) and not isinstance(value, bool) and value == 1
        fixed = parameters is not None and parameter.name not in parameters
        if parameter.is_constexpr or one or fixed:
            absent = fixed and isinstance(value, Tensor)
            signature[parameter.name], constants[parameter.name] = "constexpr", None if absent else value
            continue
        signature[parameter.name] = _type(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    kind: Any = ASTSource
    if launch.kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        kind = GluonASTSource
    source = kind(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)


def run_tool(tool: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    # Captured and left aside: nvdisasm warns of the file format each time, and disassembles nevertheless.
    return subprocess.run([path, *arguments], capture_output=True, check=True, text=True).stdout


def count_fp64(code: str) -> int:
    """Instructions in double precision of a disassembly."""
    return sum(bool(re.search(DOUBLE, line)) for line in code.splitlines())


def measure(launch: Launch, arch: int) -> Resources:
    compiled = compile_for(launch, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = run_tool("cuobjdump", "-res-usage", file.name)
        code = run_tool("nvdisasm", "-c", "-ndf", file.name)  # without its analysis of the data flow: the same, sooner
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, f"cuobjdump reported no registers: {usage}"
    return Resources(
        registers=int(registers[1]),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        **{name: len(re.findall(rf"\b{mnemonic}\b", code)) for name, mnemonic in SASS.items()},
        fp64=count_fp64(code),
    )


def make(architectures: Sequence[int]) -> Table:
    table: Table = {}
    for arch in architectures:
        for name, launch in launches(arch):
            table.setdefault(name, {})[f"sm_{arch}"] = asdict(measure(launch, arch))
    return table


def faults(name: str, arch: str, row: dict[str, int]) -> list[str]:
    """What is wrong with a row whatever it was before."""
    number = int(arch.removeprefix("sm_"))
    found = []
    if row["spills"]:
        found.append(f"spills registers ({row['spills']} instructions)")
    if row["shared"] > SHARED[number]:
        found.append(f"wants {row['shared']} bytes of shared memory, there are {SHARED[number]}")
    if row["registers"] * row["warps"] * 32 > REGISTERS:
        found.append(f"wants {row['registers']} registers for {row['warps']} warps, more than a multiprocessor has")
    if row["fp64"]:
        found.append(f"computes in double precision ({row['fp64']} instructions)")
    if has_dot(name) and not row[TENSOR[number]]:
        found.append(f"has no {TENSOR[number]} instruction")
    return [f"{name} on {arch} {fault}" for fault in found]


def has_dot(name: str) -> bool:
    """Whether a kernel multiplies matrices."""
    return name.startswith("joint_attention") or name.endswith(("face_scores", "face_update"))


def regressions(kept: Table, made: Table) -> list[str]:
    """What is worse in `made` than in `kept`, one line each, with the kernel and the architecture."""
    lines = []
    for name, row in made.items():
        for arch, now in row.items():
            lines += faults(name, arch, now)
            before = kept.get(name, {}).get(arch)
            if before is None:
                lines.append(f"{name} on {arch} is not in {PATH.name}: run make kernels")
                continue
            worse = [key for key in ("registers", "shared") if now[key] > before[key]]
            lines += [f"{name} on {arch}: {key} rose from {before[key]} to {now[key]}" for key in worse]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile every kernel for every architecture and list what it takes.")
    parser.add_argument("--check", action="store_true", help=f"compare with {PATH.name} instead of writing it")
    parser.add_argument("--arch", type=int, nargs="+", default=list(TENSOR), choices=list(TENSOR), metavar="SM")
    options = parser.parse_args(arguments)
    if not INSTALLED:
        print("Triton is not installed; it compiles the kernels: pip install 'consisid[dev]'", file=sys.stderr)
        return 2
    kept = json.loads(PATH.read_text()) if PATH.exists() else {"triton": None, "kernels": {}}
    if options.check and kept["triton"] != triton.__version__:
        versions = f"was made with triton {kept['triton']}, this is {triton.__version__}"
        print(f"{PATH.name} {versions}; install that one, or make the table again: make kernels", file=sys.stderr)
        return 2
    made = make(options.arch)
    if options.check:
        lines = regressions(kept["kernels"], made)
        print("\n".join(lines) or f"{sum(map(len, made.values()))} kernels as in {PATH.name} or better")
        return 1 if lines else 0
    lines = [line for name, row in made.items() for arch, now in row.items() for line in faults(name, arch, now)]
    print("\n".join(lines) or f"{sum(map(len, made.values()))} kernels, no faults")
    if list(options.arch) == list(TENSOR):
        PATH.write_text(json.dumps({"triton": triton.__version__, "kernels": made}, indent=1) + "\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
