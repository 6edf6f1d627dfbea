"""The engine against the authors' own pipeline, on small models of the 1.5 kind.

    python tests/parity/authors.py CLONE [--write]

CLONE is a clone of https://github.com/PKU-YuanGroup/ConsisID; its models/ are imported from there. Prints the tables of
docs/parity-1.5.md; --write makes only the videos that are kept in tests/support/authors.safetensors, and keeps them.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.authors import (
    FILE,
    FRAMES,
    LESS_SPARSE,
    NOISE,
    ROUNDED,
    SPARSE,
    STEPS,
    WEIGHTS,
    Case,
    cases,
    distance,
    given_tensors,
    models,
)  # fmt: skip
from support.autoencoders import without_posterior_noise
from support.reference import PROMPT

from consisid.bench.core.inputs import identity
from consisid.engine import ConsisID
from consisid.engine.checkpoint import write_checkpoint
from consisid.export import build


class Pair:
    """A model in both."""

    def __init__(self, model: str, folder: Path):
        self.checkpoint = write_checkpoint(models()[model], folder / "checkpoint", seed=WEIGHTS)
        build(self.checkpoint, folder / "engine", backend="eager")
        self.engine, self.person = ConsisID.open(folder / "engine"), identity(models()[model])
        self.theirs = self.pipeline()

    def pipeline(self, dtype: torch.dtype = torch.float32) -> Any:
        """The authors'."""
        from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler
        from models.pipeline_consisid import ConsisIDPipeline  # type: ignore[import-not-found]
        from models.transformer_consisid import ConsisIDTransformer3DModel  # type: ignore[import-not-found]
        from transformers import T5EncoderModel, T5Tokenizer

        at, kind = self.checkpoint, {"torch_dtype": dtype}
        found = ConsisIDPipeline(
            T5Tokenizer.from_pretrained(at / "tokenizer"),
            T5EncoderModel.from_pretrained(at / "text_encoder", **kind),
            AutoencoderKLCogVideoX.from_pretrained(at / "vae", **kind),
            ConsisIDTransformer3DModel.from_pretrained(at / "transformer", **kind).eval(),
            CogVideoXDPMScheduler.from_pretrained(at / "scheduler"),
        )
        found.set_progress_bar_config(disable=True)
        return found

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


def rounded(model: str) -> dict[str, torch.Tensor]:
    """What theirs gives in float32, and how far it is from that in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(model, Path(folder))
        without_posterior_noise(pair.checkpoint)
        shape, person, found = pair.engine.shape, pair.person, []
        for dtype in (torch.float32, torch.bfloat16):
            pipeline = pair.pipeline(dtype)
            pipeline.scheduler = diffusers.CogVideoXDDIMScheduler.from_config(pipeline.scheduler.config)
            given = {name: tensor.to(dtype) for name, tensor in given_tensors(pair.engine.variant).items()}
            for output_type in ("latent", "np"):
                made = pipeline(
                    image=person.image, id_cond=person.id_cond, id_vit_hidden=list(person.id_vit_hidden),
                    kps_cond=person.key_points, generator=torch.Generator().manual_seed(0), output_type=output_type,
                    height=shape.height, width=shape.width, num_frames=17, num_inference_steps=STEPS,
                    guidance_scale=2.0, **given,
                ).frames[0]  # fmt: skip
                if output_type == "np":
                    made = torch.from_numpy(made[:, ::LESS_SPARSE, ::LESS_SPARSE])
                found.append(made.float())
    latents, frames, *other = found
    errors = [distance(*pair) for pair in zip(other, (latents, frames), strict=True)]
    print(f"{model}, bfloat16 against float32: latents {errors[0]:.2e}, frames {errors[1]:.2e}", flush=True)
    return {"latents": latents.contiguous(), "frames": frames.half().contiguous(), "errors": torch.tensor(errors)}


def compare(chosen: Callable[[Case], bool]) -> Iterator[tuple[Case, torch.Tensor, Any, tuple[float, float]]]:
    """Every case, a line each; what theirs gave, and how far ours was from it."""
    for model in models():
        wanted = [case for case in cases() if case.model == model and chosen(case)]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            pair = Pair(model, Path(folder))
            for case in wanted:
                latents, frames, one, other = pair.videos(case)
                print(f"{case.name}: latents {one:.1e}, frames {255 * other:.3f} of 255", flush=True)
                yield case, latents, frames, (one, 255 * other)


def table(errors: Mapping[tuple[str, int], list[tuple[float, float]]]) -> str:
    """The worst of each model and length: latents, and frames of 255."""
    lines = [f"| model | {' | '.join(f'{count} frames' for count in FRAMES)} |", "|---" * (1 + len(FRAMES)) + "|"]
    for model in models():
        found = [errors.get((model, count), []) for count in FRAMES]
        cells = [" / ".join(f"{worst:.1g}" for worst in map(max, zip(*each, strict=True))) for each in found]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("clone", type=Path)
    p.add_argument("--write", action="store_true")
    options = p.parse_args()
    sys.path.insert(0, str(options.clone))
    commit = subprocess.run(
        ["git", "-C", options.clone, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    versions = f"ConsisID {commit}, diffusers {diffusers.__version__}, torch {torch.__version__}"
    found, errors = {}, dict[tuple[str, int], list[tuple[float, float]]]()
    for case, latents, frames, error in compare(lambda case: case.kept if options.write else True):
        errors.setdefault((case.model, case.frames), []).append(error)
        if case.kept:
            found[f"{case.name}/latents"] = latents.contiguous()
            sparse = np.ascontiguousarray(frames[:, ::SPARSE, ::SPARSE], dtype=np.float16)
            found[f"{case.name}/frames"] = torch.from_numpy(sparse)
    print(f"\n{versions}\n\n{table(errors)}\n", flush=True)
    for model in ROUNDED:
        found |= {f"{model}, rounded/{name}": tensor for name, tensor in rounded(model).items()}
    if options.write:
        save_file(found, FILE, {"made by": versions})


if __name__ == "__main__":
    main()
