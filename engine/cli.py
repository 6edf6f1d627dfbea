"""consisid-generate: a video from an engine folder, a photo and a prompt."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .commands import run


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("consisid-generate", description="Make a video of the person in a photo.")
    p.add_argument("engine", type=Path, help="engine folder made by consisid-build")
    p.add_argument("--image", required=True, help="photo of the person")
    p.add_argument("--prompt", required=True, help="what the person does, and where; long and detailed works best")
    p.add_argument("--negative-prompt", help="what to steer away from")
    p.add_argument("--output", type=Path, required=True, help="the .mp4 to write")
    p.add_argument("--seed", type=int, help="the same seed gives the same video")
    p.add_argument("--steps", type=int, default=50, help="denoising steps (default 50)")
    p.add_argument("--guidance-scale", type=float, default=6.0, help="weight of the prompt (default 6)")
    p.add_argument("--height", type=int, help="default: what the engine was built for")
    p.add_argument("--width", type=int)
    p.add_argument("--num-frames", type=int)
    p.add_argument("--device", help="default: what the engine was built for")
    p.add_argument(
        "--face", default="largest", help="who is meant in the photo: largest, center, or a number from the left"
    )
    p.add_argument("--save-crop", type=Path, help="also save what the model sees of the person, as a picture")
    p.add_argument("--memory", help='budget of device memory: "8GiB", bytes, or "auto" (default: no limit)')
    p.add_argument("--checkpoint", type=Path, help="file for finished steps; run the same command again to go on")
    p.add_argument("--on-oom", choices=("raise", "replan"), default="raise", help="replan: go on with less memory")
    p.add_argument("--aligned", action="store_true", help="the photo is an aligned face crop already")
    p.add_argument("--verify", action="store_true", help="hash the weights too before they are used")
    return p


def generate(options: argparse.Namespace) -> None:
    """The work of the command."""
    from tqdm import tqdm

    from .api import ConsisID
    from .errors import InputError

    if options.output.suffix.lower() != ".mp4":
        raise InputError(f"--output {options.output} does not end in .mp4, the one format that is written.")
    engine = ConsisID.open(options.engine, options.device, memory=options.memory, verify=options.verify)
    who = int(options.face) if options.face.lstrip("-").isdigit() else options.face
    person = engine.identify(options.image, face=who, aligned=options.aligned)
    if options.save_crop is not None:
        save_picture(person.preview(), options.save_crop)
    with tqdm(total=options.steps, desc="denoising", unit="step", disable=not sys.stderr.isatty()) as bar:

        def step(_engine: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            bar.update()
            return tensors

        video = engine.generate(
            person,
            options.prompt,
            negative_prompt=options.negative_prompt,
            height=options.height,
            width=options.width,
            num_frames=options.num_frames,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance_scale,
            seed=options.seed,
            callback_on_step_end=step,
            output_type="stream",
            checkpoint=options.checkpoint,
            on_oom=options.on_oom,
        )
    video.save(options.output)
    frames, height, width = video.shape
    print(f"{options.output}: {width}x{height}, {frames} frames at {video.fps} per second")
    print(video.stats.summary())


def save_picture(picture: Any, path: Path) -> None:
    """Save a PIL image, whole or not at all.

    Raises:
        InputError: an ending that Pillow knows no format for.
    """
    from .errors import InputError
    from .files import file_aside

    try:
        with file_aside(path) as aside:
            picture.save(aside)
    except ValueError as error:
        raise InputError(f"{path} cannot be written as a picture ({error}); end it in .png.") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of consisid-generate; returns the exit code."""
    options = parser().parse_args(arguments)
    return run("consisid-generate", lambda: generate(options))


if __name__ == "__main__":
    sys.exit(main())
