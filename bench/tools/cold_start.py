"""What a new process pays before its first step: `python -m consisid.bench.tools.cold_start ENGINE --output DIR`.

The process opens the folder and makes one step; a count of the programs that it started shows that nothing is compiled.
Another process under `python -X importtime` says which packages the imports spend their time in.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from consisid.engine.manifest import Manifest
from consisid.engine.util.cli import run
from consisid.engine.util.files import atomic_file

from ..core.environment import stamp
from ..core.inputs import PROMPT, identity

RUNS = 5
SHOWN = 12  # packages in the table
SPLIT = ("torch", "diffusers", "consisid")  # shown by their parts
CHILD = """
import json, sys, time
times, began, started = {}, time.perf_counter(), []
def mark(name):
    global began
    now = time.perf_counter()
    times[name], began = now - began, now
compilers = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.exec")
sys.addaudithook(lambda event, _: started.append(event) if event in compilers else None)
import torch
mark("import torch")
from consisid.engine import ConsisID, Identity
mark("import consisid.engine")
engine = ConsisID.open(sys.argv[1])
mark("open")
person = Identity.load(sys.argv[2])
mark("load an identity")
engine.generate(person, sys.argv[3], seed=1, num_inference_steps=1, output_type="latent")
mark("first step, text and conditioning included")
print(json.dumps({"seconds": times, "programs started": len(started)}))
"""


def child(folder: Path, person: Path, flags: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """One new process: what it says of itself, with its time as a whole, and what Python says on stderr."""
    start = time.perf_counter()
    command = [sys.executable, *flags, "-c", CHILD, str(folder), str(person), PROMPT]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(result.stdout.splitlines()[-1])
    found["seconds"]["whole process, Python's own start and end included"] = time.perf_counter() - start
    return found, result.stderr


def import_costs(said: str) -> dict[str, float]:
    """Seconds by package from the lines of -X importtime, most first; of each module its own, without its imports."""
    microseconds: Counter[str] = Counter()
    for own, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", said, re.MULTILINE):
        parts = module.split(".")
        microseconds[".".join(parts[:2]) if parts[0] in SPLIT else parts[0]] += int(own)
    return {name: count / 1e6 for name, count in microseconds.most_common()}


def measure(folder: Path, output: Path, runs: int = RUNS) -> dict[str, Any]:
    """Write start.json and start.md into `output`.

    Args:
        folder: an engine folder.
        runs: processes; the first may find the page cache cold, the median does not.
    """
    manifest = Manifest.read(folder)
    output.mkdir(parents=True, exist_ok=True)
    person = output / "person.safetensors"
    identity(manifest.spec.variant).save(person)
    try:
        found = [child(folder, person)[0] for _ in range(runs)]
        imports = import_costs(child(folder, person, ("-X", "importtime"))[1])
    finally:
        person.unlink()
    used = Counter(entry.backend for entry in manifest.graphs.values())
    values = {
        "engine": f"{manifest.spec.variant.name}, {manifest.spec.shape}, {manifest.spec.dtype}",
        "graphs": dict(used),
        "seconds": {name: [one["seconds"][name] for one in found] for name in found[0]["seconds"]},
        "programs_started": max(one["programs started"] for one in found),
        "imports": imports,
        **stamp(torch.device(manifest.spec.device)),
    }
    for name, text in (("start.json", json.dumps(values, indent=1)), ("start.md", render(values))):
        with atomic_file(output / name) as aside:
            aside.write_text(text + "\n")
    return values


def render(values: dict[str, Any]) -> str:
    """The figures as tables."""
    graphs = ", ".join(f"{count} graphs by {name}" for name, count in values["graphs"].items())
    versions = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    lines = [
        f"# From nothing to the first step: {values['engine']}, {graphs}",
        "",
        f"{values['device']}; {versions}; commit {values['commit']}; {values['date']}",
        "",
        f"`{values['command']}`: {len(values['seconds']['open'])} new processes one after the other. Programs "
        f"that such a process started, compilers among them: {values['programs_started']}.",
        "",
        "| | median | least | most |",
        "|---|---|---|---|",
    ]
    for name, seconds in values["seconds"].items():
        lines.append(f"| {name} | {statistics.median(seconds):.2f} s | {min(seconds):.2f} s | {max(seconds):.2f} s |")
    lines += ["", "Imports, from one process under `-X importtime`, which is slower than without:", ""]
    lines += ["| package | seconds |", "|---|---|"]
    costs = list(values["imports"].items())
    lines += [f"| {name} | {seconds:.2f} |" for name, seconds in costs[:SHOWN]]
    lines.append(f"| {len(costs) - SHOWN} others | {sum(seconds for _, seconds in costs[SHOWN:]):.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser("python -m consisid.bench.tools.cold_start", description=__doc__)
    p.add_argument("engine", type=Path, help="an engine folder")
    p.add_argument("--output", type=Path, required=True, help="folder for start.json and start.md")
    p.add_argument("--runs", type=int, default=RUNS)
    options = p.parse_args(arguments)
    return run("start", lambda: print(render(measure(options.engine, options.output, options.runs))))


if __name__ == "__main__":
    sys.exit(main())
