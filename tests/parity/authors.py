"""The engine against the authors' own pipeline, on small models of the 1.5 kind.

    python tests/parity/authors.py CLONE [--write] [--only REGEX]

CLONE is a clone of https://github.com/PKU-YuanGroup/ConsisID; its models/ are imported from there. Prints the table of
docs/parity-1.5.md; --write keeps what came out in tests/support/authors.safetensors.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.authors import FILE, NOISE, SPARSE, STEPS, WEIGHTS, Case, cases, models
from support.reference import PROMPT

from consisid.bench.core.inputs import identity
from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.export import build


class Pair:
    """A model in both."""

    def __init__(self, model: str, folder: Path):
        from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler
        from models.pipeline_consisid import ConsisIDPipeline  # type: ignore[import-not-found]
        from models.transformer_consisid import ConsisIDTransformer3DModel  # type: ignore[import-not-found]
        from transformers import T5EncoderModel, T5Tokenizer

        variant = models()[model]
        checkpoint = write_checkpoint(variant, folder / "checkpoint", seed=WEIGHTS)
        build(checkpoint, folder / "engine", backend="eager")
        self.engine, self.person = ConsisID.open(folder / "engine"), identity(variant)
        self.theirs = ConsisIDPipeline(
            T5Tokenizer.from_pretrained(checkpoint / "tokenizer"),
            T5EncoderModel.from_pretrained(checkpoint / "text_encoder"),
            AutoencoderKLCogVideoX.from_pretrained(checkpoint / "vae"),
            ConsisIDTransformer3DModel.from_pretrained(checkpoint / "transformer").eval(),
            CogVideoXDPMScheduler.from_pretrained(checkpoint / "scheduler"),
        )
        self.theirs.set_progress_bar_config(disable=True)

    def videos(self, case: Case) -> tuple[torch.Tensor, Any, float, float]:
        """Their latents and frames, and the largest differences of ours."""
        shape, config, person = self.engine.shape, self.engine.variant.transformer, self.person
        options = {
            "prompt": PROMPT, "height": shape.height, "width": shape.width, "num_frames": case.frames,
            "num_inference_steps": STEPS, "guidance_scale": case.guidance, "use_dynamic_cfg": case.dynamic,
        }  # fmt: skip
        scheduler = getattr(diffusers, case.scheduler).from_config(self.theirs.scheduler.config)
        self.theirs.scheduler = scheduler
        self.engine.scheduler = type(scheduler).from_config(scheduler.config)

        def theirs(output_type: str) -> Any:
            return self.theirs(
                image=person.image, id_cond=person.id_cond, id_vit_hidden=list(person.id_vit_hidden),
                kps_cond=person.key_points, generator=torch.Generator().manual_seed(NOISE), output_type=output_type,
                max_sequence_length=config.max_text_seq_length, **options,
            ).frames[0]  # fmt: skip

        latents, frames = theirs("latent"), theirs("np")
        ours = self.engine.generate(person, seed=NOISE, output_type="np", **options)
        wrong = self.engine.generate(person, seed=NOISE, output_type="latent", **options).latents - latents
        return latents, frames, float(wrong.abs().max()), float(np.abs(ours.frames - frames).max())


def compare(pattern: str) -> Iterator[tuple[Case, torch.Tensor, Any]]:
    """Every case, a line each; what theirs gave."""
    for model in models():
        wanted = [case for case in cases() if case.model == model and re.search(pattern, case.name)]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            pair = Pair(model, Path(folder))
            for case in wanted:
                latents, frames, one, other = pair.videos(case)
                print(f"| {case.name} | {one:.1e} | {255 * other:.3f} |", flush=True)
                yield case, latents, frames


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("clone", type=Path)
    p.add_argument("--write", action="store_true")
    p.add_argument("--only", default="", metavar="REGEX")
    options = p.parse_args()
    sys.path.insert(0, str(options.clone))
    commit = subprocess.run(
        ["git", "-C", options.clone, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    versions = f"ConsisID {commit}, diffusers {diffusers.__version__}, torch {torch.__version__}"
    print(f"{versions}\n\n| video | latents | frames, of 255 |\n|---|---|---|", flush=True)
    found = {}
    for case, latents, frames in compare(options.only):
        if case.kept:
            found[f"{case.name}/latents"] = latents.contiguous()
            found[f"{case.name}/frames"] = torch.from_numpy(frames[:, ::SPARSE, ::SPARSE].astype(np.float16))
    if options.write:
        save_file(found, FILE, {"made by": versions})


if __name__ == "__main__":
    main()
