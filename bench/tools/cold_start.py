"""What a new process pays before its first step: `python -m consisid.bench.tools.cold_start ENGINE --output DIR`.

The process opens the folder and makes one step; a count of the programs that it started shows that nothing is compiled.
Which packages the imports spend their time in, `python -X importtime -c 'import consisid.engine'` says.
"""

import argparse
import json
import resource
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

from ..core.environment import stamp
from ..core.inputs import PROMPT, identity
from ..core.tables import made_by, table, write_files

RUNS = 5
COMMANDS = {"consisid": "consisid.engine.main"} | {
    f"consisid {name}": f"consisid.{part}.cli"
    for name, part in (("build", "export"), ("generate", "engine"), ("bench", "bench"))
}
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


def child(folder: Path, person: Path) -> dict[str, Any]:
    """What one new process says of itself, with its time as a whole."""
    start = time.perf_counter()
    command = [sys.executable, "-c", CHILD, str(folder), str(person), PROMPT]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    found["seconds"]["whole process, Python's own start and end included"] = time.perf_counter() - start
    return found


def help_seconds(module: str) -> float:
    """CPU seconds that --help of a command takes more than a Python that does nothing."""
    spent = []
    for script in ("pass", f"from {module} import main; main(['--help'])"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return spent[1] - spent[0]


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
        found = [child(folder, person) for _ in range(runs)]
    finally:
        person.unlink()
    values = {
        "engine": f"{manifest.spec.variant.name}, {manifest.spec.shape}, {manifest.spec.dtype}",
        "graphs": dict(Counter(entry.backend for entry in manifest.graphs.values())),
        "seconds": {name: [one["seconds"][name] for one in found] for name in found[0]["seconds"]},
        "help_cpu_seconds": {name: [help_seconds(module) for _ in range(runs)] for name, module in COMMANDS.items()},
        "programs_started": max(one["programs started"] for one in found),
        **stamp(torch.device(manifest.spec.device)),
    }
    write_files(output, {"start.json": json.dumps(values, indent=1) + "\n", "start.md": markdown(values)})
    return values


def markdown(values: dict[str, Any]) -> str:
    """The figures as a table."""
    graphs = ", ".join(f"{count} graphs by {name}" for name, count in values["graphs"].items())
    rows = [
        (name, *(f"{of(seconds):.2f} s" for of in (statistics.median, min, max)))
        for name, seconds in [
            *values["seconds"].items(),
            *(
                (f"CPU time of `{name} --help` over `python -c pass`", x)
                for name, x in values["help_cpu_seconds"].items()
            ),
        ]
    ]
    return f"""# From nothing to the first step: {values["engine"]}, {graphs}

{made_by(values)}

`{values["command"]}`: {len(values["seconds"]["open"])} new processes one after the other. Programs that such a process
started, compilers among them: {values["programs_started"]}.

{chr(10).join(table(("", "median", "least", "most"), rows))}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser("python -m consisid.bench.tools.cold_start", description=__doc__)
    p.add_argument("engine", type=Path, help="an engine folder")
    p.add_argument("--output", type=Path, required=True, help="folder for start.json and start.md")
    p.add_argument("--runs", type=int, default=RUNS)
    options = p.parse_args(arguments)
    return run("start", lambda: print(markdown(measure(options.engine, options.output, options.runs))))


if __name__ == "__main__":
    sys.exit(main())
