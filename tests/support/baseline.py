"""What a refactoring must not change, as JSON: `python tests/support/baseline.py OUTPUT`, before and after it.

sha256 of TINY's latents and frames in every mode, eager and compiled by AOTInductor; what the commands print for --help
and for plans of the memory; the keys of a report. It uses public names alone, so it runs at any commit.
"""

import contextlib
import hashlib
import importlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from consisid.engine import ConsisID, Identity
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.variants import TINY
from consisid.export import build

BUDGETS = ("3GiB", "4GiB", "6GiB", "8GiB", "12GiB", "24GiB")
COMMANDS = {
    "consisid-build": "consisid.export.cli",
    "consisid-generate": "consisid.engine.cli",
    "consisid-bench": "consisid.bench.cli",
}
STEPS = 3


def person() -> Identity:
    generator = torch.Generator().manual_seed(1)
    config, eva = TINY.transformer, TINY.eva
    tokens = (eva.image_size // eva.patch_size) ** 2 + 1
    pixels = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return Identity.from_embeddings(
        torch.randn(1, config.LFE_id_dim, generator=generator),
        [torch.randn(1, tokens, config.LFE_vit_dim, generator=generator) for _ in range(config.LFE_num_scale)],
        Image.fromarray(pixels),
    )


def lora() -> dict[str, torch.Tensor]:
    generator, dim = torch.Generator().manual_seed(2), TINY.transformer.inner_dim
    return {
        f"transformer.transformer_blocks.{layer}.attn1.{name}.lora_{part}.weight": 0.1
        * torch.randn(shape, generator=generator)
        for layer in (0, 3)
        for name in ("to_q", "to_out.0")
        for part, shape in (("A", (4, dim)), ("B", (dim, 4)))
    }


class Last:
    """A callback that keeps the latents of the last step, and fails in `fails_in`."""

    def __init__(self, fails_in: int | None = None):
        self.fails_in, self.latents = fails_in, torch.empty(0)

    def __call__(self, engine: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == self.fails_in:
            raise InterruptedError
        self.latents = tensors["latents"]
        return tensors


def hashed(latents: torch.Tensor, *videos: Any) -> str:
    digest = hashlib.sha256(latents.cpu().numpy().tobytes())
    for video in videos:
        digest.update(np.ascontiguousarray(video.frames).tobytes())
    return digest.hexdigest()[:16]


def videos(folder: Path, place: Path, modes: bool) -> Iterator[tuple[str, str]]:
    engine, who = ConsisID.open(folder), person()

    def made(engine: ConsisID = engine, prompt: Any = "A person walks.", **options: Any) -> str:
        last = Last()
        options = {"seed": 3, "num_inference_steps": STEPS, "callback_on_step_end": last} | options
        found = engine.generate(who, prompt, **options)
        return hashed(last.latents, *(found if isinstance(found, list) else [found]))

    yield "plain", made()
    yield "sequential", made(cfg="sequential")
    engine.load_lora_weights(lora())
    yield "lora", made()
    engine.unload_lora_weights()
    yield "without it", made()
    least = next(b for b in range(1, 400) if planned(engine, b))
    for budget in (least, least + 8):
        yield f"streamed at {budget} MiB", made(ConsisID.open(folder, memory=f"{budget}MiB"))
    if not modes:
        return
    for mode, tile in (("tiled", None), ("exact", None), ("tiled-reference", (6, 10))):
        yield mode, made(decode=mode, tile=tile)
    yield "two prompts", made(prompt=["One.", "Two."])
    yield "no guidance", made(guidance_scale=1.0)
    yield "dynamic guidance", made(use_dynamic_cfg=True)
    file = place / "run.safetensors"
    with contextlib.suppress(InterruptedError):
        made(checkpoint=file, checkpoint_every=1, callback_on_step_end=Last(fails_in=1))
    assert file.exists()
    yield "resumed", made(checkpoint=file, checkpoint_every=1)


def planned(engine: ConsisID, mebibytes: int) -> bool:
    from consisid.engine.errors import MemoryBudgetError

    try:
        engine.plan(f"{mebibytes}MiB")
    except MemoryBudgetError:
        return False
    return True


def printed(module: str, *arguments: str) -> str:
    found = io.StringIO()
    with contextlib.redirect_stdout(found), contextlib.suppress(SystemExit):
        importlib.import_module(module).main(arguments)
    return found.getvalue()


def keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: keys(value[name]) for name in sorted(value)}
    return [keys(value[0])] if isinstance(value, list) and value else type(value).__name__


def report(folder: Path, place: Path) -> Any:
    printed("consisid.bench.cli", str(folder), "--output", str(place), "--steps", "2", "--runs", "1")
    return keys(json.loads(next(place.glob("*.json")).read_text()))


def main(output: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_checkpoint("tiny", place / "checkpoint")
        for backend in ("eager", "inductor"):
            build(place / "checkpoint", place / backend, backend=backend)
            found[backend] = dict(videos(place / backend, place, modes=backend == "eager"))
        found["help"] = {name: printed(module, "--help") for name, module in COMMANDS.items()}
        plan = ("preview", "--random-weights", "--dry-run", "--device", "cpu", "--dtype", "bfloat16", "--memory")
        found["plans"] = {budget: printed("consisid.export.cli", *plan, budget) for budget in BUDGETS}
        found["report"] = report(place / "eager", place / "report")
    output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
