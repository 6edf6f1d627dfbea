"""What the server adds before the first step: `PYTHONPATH=tests python -m support.first_step ENGINE --output DIR`.

A turn is two videos of one person with new prompts, by one engine: one by ConsisID.generate, one by POST /v1/videos
over HTTP to a server in this process, so that both ends are read from one clock. They take turns at being first. The
row is of the differences within a turn: what the machine does meanwhile, it does to both.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import torch
from support.serving import Running, running, wait_until

from consisid.bench.core.environment import command, stamp
from consisid.bench.core.inputs import identity, prompt_of
from consisid.bench.core.samples import Row
from consisid.bench.core.tables import made_by, table, write_files
from consisid.engine import Identity

OPTIONS = {"num_inference_steps": 2, "num_frames": 9, "seed": 1}
WARM = 2  # turns that are not counted
ALONE, SERVED, ADDED = "ConsisID.generate", "POST /v1/videos", "added by the server"


class Turns:
    """Both ways to the end of a first step, in seconds."""

    def __init__(self, server: Running, person: Identity, character: str, http: httpx.Client):
        self.server, self.person, self.character, self.http = server, person, character, http

    def alone(self, prompt: str) -> float:
        ended: list[float] = []
        begin = time.perf_counter()
        self.server.worker.engine.generate(
            self.person, prompt, callback_on_step_end=lambda *given: ended.append(time.perf_counter()), **OPTIONS
        )
        return ended[0] - begin

    def served(self, prompt: str) -> float:
        """The step has ended when the scheduler has heard of it, which is what a client is told."""
        scheduler, heard, ended = self.server.service.scheduler, list[float](), threading.Event()
        hear = scheduler._stepped

        def stepped(id: str, report: Any) -> None:
            hear(id, report)
            heard.append(time.perf_counter())
            if report.step == report.steps:
                ended.set()

        scheduler._stepped = stepped
        try:
            begin = time.perf_counter()
            answer = self.http.post(
                f"{self.server.address}/v1/videos",
                json={"prompt": prompt, "character": self.character, **OPTIONS},
            )
            answer.raise_for_status()
            if not ended.wait(60):
                raise TimeoutError(answer.json())
        finally:
            scheduler._stepped = hear
        wait_until(lambda: not scheduler.running)
        return heard[0] - begin

    def measure(self, count: int) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {ALONE: [], SERVED: []}
        for turn in range(-WARM, count):
            ways = [(ALONE, self.alone), (SERVED, self.served)]
            for name, way in ways if turn % 2 else ways[::-1]:
                seconds = way(prompt_of(2 * (turn + WARM) + (name == SERVED)))
                if turn >= 0:
                    found[name].append(seconds)
        return found | {ADDED: [b - a for a, b in zip(found[ALONE], found[SERVED], strict=True)]}


def measure(folder: Path, turns: int) -> dict[str, Any]:
    """Seconds of each turn, rows of their medians and quartiles, and what made them."""
    with tempfile.TemporaryDirectory() as data, running(folder, Path(data) / "data") as server:
        engine = server.worker.engine
        person = identity(engine.variant)
        content = person.save(Path(data) / "person.safetensors").read_bytes()
        service = server.service
        service.files.write("character", "char_0", content)
        character = service.store.add_character("char_0", "local", "somebody").id
        with httpx.Client() as http:  # one connection, as clients keep it
            found = Turns(server, person, character, http).measure(turns)
        return {
            "engine": f"{engine.variant.name}, {engine.shape}", "seconds": found,
            "rows": [vars(Row.of("first step", name, "s", values)) for name, values in found.items()],
            "made": stamp(torch.device(engine.device)),
        }  # fmt: skip


def markdown(values: dict[str, Any]) -> str:
    cells = [
        (row["name"], *(f"{1e3 * row[key]:.1f} ms" for key in ("median", "low", "high")), str(row["count"]))
        for row in values["rows"]
    ]
    heading = ("from the request to the end of the first step", "median", "lower quartile", "upper quartile", "turns")
    return "\n".join(
        [f"# What the server adds before the first step: {values['engine']}", "", made_by(values["made"]), "",
         f"`{values['made']['command']}`", "",
         "The last row is of the differences within each turn.", "", *table(heading, cells), ""]
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser("python -m support.first_step", description=__doc__.splitlines()[0])
    p.add_argument("engine", type=Path, help="engine folder made by consisid-build")
    p.add_argument("--output", type=Path, required=True, help="folder for served.json and served.md")
    p.add_argument("--turns", type=int, default=60, help="of the measurement (default 60)")
    options = p.parse_args(arguments)
    values = measure(options.engine, options.turns)
    given = sys.argv[1:] if arguments is None else arguments
    settings, _, rest = command(["support.first_step", *given]).partition("support.first_step")
    values["made"]["command"] = f"{settings}PYTHONPATH=tests python -m support.first_step{rest}"
    text = markdown(values)
    write_files(options.output, {"served.json": json.dumps(values, indent=1) + "\n", "served.md": text})
    print(text)


if __name__ == "__main__":
    main()
