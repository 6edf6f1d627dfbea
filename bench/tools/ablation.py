"""`python -m consisid.bench.tools.ablation EAGER COMPILED`: seconds of a denoising step, rung by rung, in one process.

diffusers, the engine without hoisting, the engine by the eager backend, and compiled take short turns, in another order
each time. A rung is judged by its ratio to the rung above in the same turn, so that what slows the machine for a while
slows both.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from consisid.engine import ConsisID, Identity
from consisid.engine.errors import InputError
from consisid.engine.util.cli import run as run_command
from consisid.engine.util.files import atomic_file

from ..core.ablation import Unhoisted
from ..core.baselines import EAGER, GUIDANCE, Theirs
from ..core.environment import stamp
from ..core.inputs import PROMPT, identity
from ..core.samples import Row
from ..core.timing import probing
from .profiles import PARTS, by_graph, watching

Loop = Callable[[int], list[float]]
"""Seconds of each step but the first of a short loop, by the number of its turn."""
Profile = dict[str, dict[str, float]]
OUTSIDE = "outside: scheduler, guidance, calls"
RUNGS = ("diffusers", "ours without hoisting", "ours, eager", "ours, compiled")


def check_pair(eager: ConsisID, compiled: ConsisID) -> None:
    """Raises InputError where two engines are not two builds of one thing."""
    a, b = eager.manifest.spec, compiled.manifest.spec
    differing = [name for name in ("variant", "shape", "dtype", "checkpoint") if getattr(a, name) != getattr(b, name)]
    if differing:
        raise InputError(
            f"{eager.folder} and {compiled.folder} differ in {', '.join(differing)}; build both from one checkpoint "
            "with the same flags but --backend."
        )


def loops(eager: ConsisID, compiled: ConsisID, person: Identity, steps: int) -> dict[str, Loop]:
    """The four rungs. Each gets the prompt's embeddings, and stops at the latents."""
    theirs, unhoisted = Theirs(eager, person, steps, EAGER), Unhoisted(eager, person, steps)
    with torch.no_grad():
        embeds = eager.text_encoder(eager.networks(), ["", PROMPT])
    negative, prompt = embeds.chunk(2)

    @torch.no_grad()
    def reference(index: int) -> list[float]:
        return theirs.denoise(index, prompt, negative)[1]

    @torch.no_grad()
    def without(index: int) -> list[float]:
        times: list[float] = []
        unhoisted.latents(embeds, index, times)
        return [b - a for a, b in itertools.pairwise(times)][1:]

    def whole(engine: ConsisID) -> Loop:
        def loop(index: int) -> list[float]:
            made = engine.generate(
                person, prompt_embeds=prompt, negative_prompt_embeds=negative, seed=index,
                num_inference_steps=steps, guidance_scale=GUIDANCE, output_type="latent",
            )  # fmt: skip
            return list(made.stats.steps[1:])

        return loop

    return dict(zip(RUNGS, (reference, without, whole(eager), whole(compiled)), strict=True))


def take_turns(makers: Mapping[str, Loop], turns: int) -> dict[str, list[float]]:
    """By rung the median step of each turn; one turn before them does not count."""
    names, found = list(makers), dict[str, list[float]]((name, []) for name in makers)
    for turn in range(-1, turns):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            seconds = statistics.median(makers[name](turn + 1))
            if turn >= 0:
                found[name].append(seconds)
    return found


def rungs(found: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Per rung seconds, the ratio to the rung above turn by turn, and whether it is lower beyond the ratio's spread."""
    rows, above = [], None
    for name, seconds in found.items():
        step = Row.of("step", name, "s", list(seconds))
        row: dict[str, Any] = {"name": name, "seconds": step.median, "low": step.low, "high": step.high}
        if above is not None:
            ratio = Row.of("ratio", name, "", [a / b for a, b in zip(seconds, above, strict=True)])
            row |= {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high, "lower": ratio.high < 1}
        rows.append(row)
        above = seconds
    return rows


def profile(eager: ConsisID, compiled: ConsisID, person: Identity, steps: int, turns: int) -> Profile:
    """By rung seconds of a step by part of the transformer, and what lies outside them: the median of each over turns.

    Observing costs a little, and diffusers more than us: each of its modules is hooked, of ours each graph.
    """
    theirs, made = Theirs(eager, person, steps, EAGER), loops(eager, compiled, person, steps)
    with torch.no_grad():
        negative, prompt = eager.text_encoder(eager.networks(), ["", PROMPT]).chunk(2)

    def reference(index: int) -> dict[str, float]:
        with torch.no_grad(), watching(theirs.pipeline.transformer) as seconds:
            whole = statistics.median(theirs.denoise(index, prompt, negative)[1])
        return _shares({part: seconds.get(part, 0.0) for part in PARTS}, whole)

    def ours(name: str, engine: ConsisID, index: int) -> dict[str, float]:
        with probing(engine.networks()) as probe:
            whole = statistics.median(made[name](index))
        return _shares(by_graph(probe), whole)

    def _shares(parts: dict[str, float], whole: float) -> dict[str, float]:
        each = {part: total / steps for part, total in parts.items()}
        return {**each, OUTSIDE: whole - sum(each.values())}

    engines = dict(zip(RUNGS[1:], (eager, eager, compiled), strict=True))
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in RUNGS}
    for turn in range(turns + 1):
        for name in RUNGS:
            seen[name].append(ours(name, engines[name], turn) if name in engines else reference(turn))
    return {
        name: {part: statistics.median(one[part] for one in found[1:]) for part in (*PARTS, OUTSIDE)}
        for name, found in seen.items()
    }


def measure(eager: ConsisID, compiled: ConsisID, steps: int, turns: int) -> dict[str, Any]:
    """The ladder of two builds of one checkpoint.

    Args:
        steps: of each short loop, of which the first is not counted.

    Raises:
        InputError: two engines of different things, or too few steps or turns.
        PeerError: diffusers does not run.
    """
    if steps < 2 or turns < 2:
        raise InputError(f"--steps {steps} and --turns {turns} have to be at least 2.")
    check_pair(eager, compiled)
    made, person = stamp(eager.device), identity(eager.variant)
    spec = eager.manifest.spec
    return {
        "engine": f"{spec.variant.name}: {spec.shape}, {spec.dtype}; compiled by {compiled.manifest.spec.backend}",
        "made": made,
        "steps": steps,
        "turns": turns,
        "threads": torch.get_num_threads(),
        "rungs": rungs(take_turns(loops(eager, compiled, person, steps), turns)),
        "profile": profile(eager, compiled, person, steps, max(1, turns // 3)),
    }


def markdown(ladder: Mapping[str, Any]) -> str:
    """ladder.md."""
    made = ladder["made"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines = [
        f"# Seconds of a step, {ladder['engine']}", "",
        f"{made['device']}; {versions}; commit {made['commit']}; {made['date']}", "",
        f"`{made['command']}`: {ladder['turns']} turns of {ladder['steps']} steps, the first of each not counted; "
        f"{ladder['threads']} thread(s).", "",
        "| rung | s per step | quartiles | of the rung above, turn by turn | quartiles | lower beyond its spread |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in ladder["rungs"]:
        cells = [row["name"], f"{row['seconds']:.4g}", f"{row['low']:.4g} to {row['high']:.4g}"]
        cells += (
            [
                f"{row['ratio']:.3f}",
                f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
                "yes" if row["lower"] else "no",
            ]
            if "ratio" in row
            else ["", "", ""]
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Milliseconds of a step by part of the transformer, observed in turns of their own:", ""]
    lines += [f"| | {' | '.join(ladder['profile'])} |", "|---|" + "---|" * len(ladder["profile"])]
    for part in (*PARTS, OUTSIDE):
        values = [f"{1e3 * parts[part]:.2f}" for parts in ladder["profile"].values()]
        lines.append(f"| {part} | {' | '.join(values)} |")
    return "\n".join([*lines, ""])


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m consisid.bench.tools.ablation", description=(__doc__ or "").splitlines()[0])
    p.add_argument("eager", type=Path, help="engine folder built with --backend eager")
    p.add_argument("compiled", type=Path, help="engine folder of the same checkpoint, compiled")
    p.add_argument("--output", type=Path, required=True, help="folder for ladder.json and ladder.md")
    p.add_argument("--steps", type=int, default=4, help="denoising steps of a turn (default 4)")
    p.add_argument("--turns", type=int, default=24, help="turns of each rung (default 24)")
    p.add_argument("--threads", type=int, help="of PyTorch on the CPU (default: PyTorch's)")
    return p


def work(options: argparse.Namespace) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    eager, compiled = (ConsisID.open(folder) for folder in (options.eager, options.compiled))
    found = measure(eager, compiled, options.steps, options.turns)
    contents = {"ladder.json": json.dumps(found, indent=1) + "\n", "ladder.md": markdown(found)}
    for name, content in contents.items():
        with atomic_file(options.output / name) as aside:
            aside.write_text(content)
    print(contents["ladder.md"], end="")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run_command("consisid.bench.tools.ablation", lambda: work(options))


if __name__ == "__main__":
    sys.exit(main())
