"""`consisid-bench ENGINE --quality`: what each approximation costs and saves, against the exact video of the same seed.

PSNR and SSIM (Wang et al., IEEE TIP 2004, by scikit-image) over the frames, how like the person the faces are
(engine/face/similarity.py), seconds, and how often the blocks ran, for whoever has to choose with their own weights.
"""

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from consisid.engine import ConsisID, Identity, Video
from consisid.engine.errors import InputError
from consisid.engine.face.similarity import similarity
from consisid.engine.util.files import atomic_file

from ..core.environment import stamp
from ..core.inputs import PROMPT, identity
from ..core.tables import made_by, table, write_files
from ..core.timing import now

HEADING = ("", "seconds", "of exact", "passes of the blocks", "PSNR, dB", "SSIM", "ArcFace cosine")


def approximations(steps: int) -> dict[str, dict[str, Any]]:
    """Arguments of generate by name; the first is exact."""
    end = max(1, round(0.6 * steps))
    ways: dict[str, dict[str, Any]] = {f"cache {x}": {"cache": x} for x in (0.1, 0.15, 0.2, "2x")}
    ways["first block 0.1"] = {"first_block": 0.1}
    ways |= {f"guidance 0:{end}": {"guidance_window": (0, end)}, "guidance every 2": {"guidance_every": 2}}
    ways["cache 2x, guidance every 2"] = {"cache": "2x", "guidance_every": 2}
    return {"exact": {}} | {name: {"shortcuts": way} for name, way in ways.items()} | {"tiles": {"decode": "tiled"}}


def measure(engine: ConsisID, person: Identity, prompt: str, steps: int, runs: int, seen: bool) -> list[dict[str, Any]]:
    """A row for each approximation.

    Args:
        seen: the faces of the frames are compared with the person's.
    """
    from skimage.metrics import structural_similarity

    rows, exact = list[dict[str, Any]](), np.empty(0)
    engine.generate(person, prompt, seed=1, num_inference_steps=2)  # what loads late
    for name, given in approximations(steps).items():
        seconds: list[float] = []
        for _ in range(runs):
            start = now(engine.device)
            video: Video = engine.generate(person, prompt, seed=1, num_inference_steps=steps, **given)
            seconds.append(now(engine.device) - start)
        frames = video.frames
        exact = exact if rows else frames
        error = float(np.square(frames.astype(np.float64) - exact).mean())
        passes = [count for graph, count in video.stats.calls.items() if graph.startswith(("last_block", "trunk_0"))]
        like = similarity(engine.faces, person, (f[..., ::-1].copy() for f in frames)).mean if seen else None
        ssim = [structural_similarity(a, b, channel_axis=-1) for a, b in zip(frames, exact, strict=True)]
        psnr = 10 * float(np.log10(255**2 / error)) if error else None
        row = {"name": name, "seconds": seconds, "passes": sum(passes), "psnr_db": psnr, "ssim": float(np.mean(ssim))}
        rows.append({**row, "identity": like, "approximations": video.settings["approximations"]})
    return rows


def cells(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    first, found = statistics.median(rows[0]["seconds"]), list[tuple[str, ...]]()
    for row in rows:
        spent = statistics.median(row["seconds"])
        psnr = "identical" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        like = "not seen" if row["identity"] is None else f"{row['identity']:.3f}"
        line = f"{spent:.3g}", f"{spent / first:.0%}", str(row["passes"]), psnr, f"{row['ssim']:.3f}", like
        found.append((row["name"], *line))
    return found


def plot(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        at = statistics.median(row["seconds"])
        if row["psnr_db"] is None:
            axes.axvline(at, ls=":", color="#22303c", label=row["name"])
        else:
            axes.plot(at, row["psnr_db"], "o", label=row["name"])
    axes.set(xlabel="seconds per video", ylabel="PSNR against the exact video, dB", title=title)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def measure_quality(options: Any) -> tuple[dict[str, Any], str]:
    """Write quality.json, .md and .png into the output folder; return what they hold, and the table."""
    if options.steps < 2 or options.runs < 1:
        raise InputError(f"--steps {options.steps} has to be at least 2 and --runs {options.runs} at least 1.")
    engine = ConsisID.open(options.engine, options.device, memory=options.memory)
    person = identity(engine.variant) if options.image is None else engine.identify(options.image)
    prompt = options.prompt or PROMPT
    rows = measure(engine, person, prompt, options.steps, options.runs, options.image is not None)
    what, made = f"{engine.variant.name}, {engine.shape}, {options.steps} steps", stamp(engine.device)
    values: dict[str, Any] = {"engine": what, "prompt": prompt, "rows": rows, "made": made}
    text = "\n".join(table(HEADING, cells(rows)))
    with atomic_file(options.output / "quality.png") as aside:
        aside.write_bytes(plot(rows, what))
    page = f"# What approximations cost and save: {what}\n\n{made_by(made)}\n\n`{made['command']}`\n\n{text}\n"
    page += "\n![PSNR by seconds](quality.png)\n"
    write_files(options.output, {"quality.json": json.dumps(values, indent=1) + "\n", "quality.md": page})
    return values, text
