"""consisid-generate: a video from an engine folder, a photo and a prompt."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .util.cli import add_common, run

# What --dynamic-cfg means to generate().
DYNAMIC: dict[str, bool | str] = {"off": False, "reference": True, "step": "step"}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("consisid-generate", description="Make a video of the person in a photo.")
    add_common(p)
    p.add_argument("engine", type=Path, help="engine folder made by consisid-build")
    p.add_argument(
        "--image", required=True, nargs="+", metavar="PHOTO",
        help="path or address; of several photos the most typical is taken; or what --save-identity wrote",
    )  # fmt: skip
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
    p.add_argument("--dynamic-cfg", choices=DYNAMIC, default="off", help="a weight of the prompt that changes")
    p.add_argument("--cfg", help="batched or sequential: both halves of guidance at once (default: the memory decides)")
    p.add_argument("--decode", help="whole (default without --memory), tiled, exact or tiled-reference")
    p.add_argument("--tile", type=int, nargs=2, metavar=("H", "W"), help="of --decode, in latent pixels")
    p.add_argument(
        "--face", type=face_choice, default="largest", metavar="WHO",
        help="who is meant in the photo: largest, center, reference, a number from the left, or a box x0,y0,x1,y1",
    )  # fmt: skip
    p.add_argument("--mode", default="crop", help="what the model sees: crop, the aligned face (default), or whole")
    p.add_argument("--key-points", default="crop", help="drawn in the crop (default), or reference: in the photo")
    p.add_argument("--save-crop", type=Path, help="also save the aligned face on white, as a picture")
    p.add_argument("--save-identity", type=Path, help="also save the person as .safetensors, for --image")
    p.add_argument("--lora", nargs="+", default=[], metavar="LORA", help=".safetensors files, folders or hub ids")
    p.add_argument("--lora-weight", type=float, nargs="+", metavar="W", help="of --lora: one for all, or one each")
    p.add_argument("--memory", help='budget of device memory: "8GiB", bytes, or "auto" (default: no limit)')
    p.add_argument("--checkpoint", type=Path, help="file for finished steps; run the same command again to go on")
    p.add_argument("--checkpoint-every", type=int, default=5, help="steps between two writings of it (default 5)")
    p.add_argument("--on-oom", choices=("raise", "replan"), default="raise", help="replan: go on with less memory")
    p.add_argument("--aligned", action="store_true", help="the photo is an aligned face crop already")
    p.add_argument("--verify", action="store_true", help="hash the weights too before they are used")
    return p


def face_choice(text: str) -> str | int | tuple[float, ...]:
    """--face as identify() takes it: a number, a box, or else a word."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return tuple(float(part) for part in text.split(",")) if "," in text else text
    return text


def person_of(engine: Any, options: argparse.Namespace) -> Any:
    """The Identity that --image and its companions mean."""
    from .face.identity import Identity

    photos = options.image
    if len(photos) == 1 and photos[0].endswith(".safetensors"):
        return Identity.load(photos[0])
    return engine.identify(
        photos[0] if len(photos) == 1 else photos,
        face=options.face, aligned=options.aligned, mode=options.mode, key_points=options.key_points,
    )  # fmt: skip


def load_loras(engine: Any, options: argparse.Namespace) -> None:
    """--lora and --lora-weight."""
    for source in options.lora:
        engine.load_lora_weights(source)
    if options.lora or options.lora_weight:
        weights = options.lora_weight
        one_for_all = weights is not None and len(weights) == 1 and options.lora
        loaded = engine.get_list_adapters().get("transformer", [])
        engine.set_adapters(loaded, weights[0] if one_for_all else weights)


def generate(options: argparse.Namespace) -> None:
    """The work of the command."""
    from .api import ConsisID
    from .util.progress import Progress

    check_places(options)
    engine = ConsisID.open(options.engine, options.device, memory=options.memory, verify=options.verify)
    load_loras(engine, options)
    person = person_of(engine, options)
    if options.save_crop is not None:
        save_picture(person.preview(), options.save_crop)
    if options.save_identity is not None:
        person.save(options.save_identity)
    with Progress("denoising", options.steps, "step") as progress:

        def step(_engine: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress.advance()
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
            use_dynamic_cfg=DYNAMIC[options.dynamic_cfg],
            cfg=options.cfg,
            decode=options.decode,
            tile=None if options.tile is None else tuple(options.tile),
            seed=options.seed,
            callback_on_step_end=step,
            output_type="stream",
            checkpoint=options.checkpoint,
            checkpoint_every=options.checkpoint_every,
            on_oom=options.on_oom,
        )
    video.save(options.output)
    frames, height, width = video.shape
    print(f"{options.output}: {width}x{height}, {frames} frames at {video.fps} per second")
    print(video.stats.summary())


def check_places(options: argparse.Namespace) -> None:
    """Whether everything that will be written can be, tried with what will write it.

    Raises:
        InputError: it cannot, or two things would be written to one place.
    """
    from .errors import InputError
    from .face import identity
    from .util import mp4
    from .util.files import check_place

    checks: dict[str, Callable[[Path], None]] = {
        "output": mp4.check_target,
        "save_crop": check_picture,
        "save_identity": identity.check_target,
        "checkpoint": check_place,
    }
    taken: dict[Path, str] = {}
    for name, check in checks.items():
        path, flag = getattr(options, name), f"--{name.replace('_', '-')}"
        if path is None:
            continue
        check(path)
        other = taken.setdefault(path.resolve(), flag)
        if other != flag:
            raise InputError(f"{flag} {path} is the file of {other} too; give each a name of its own.")


def picture_format(path: Path) -> str:
    """Pillow's name of the format that a picture's ending stands for.

    Raises:
        InputError: it stands for none that is written.
    """
    from PIL import Image

    from .errors import InputError

    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(f"{path} cannot be written as a picture (unknown ending {path.suffix!r}); end it in .png.")
    return kind


def check_picture(path: Path) -> None:
    """Whether a picture can be written at `path`, tried with a small one that has no name; raises InputError."""
    from PIL import Image

    from .util.files import check_place

    kind = picture_format(path)
    check_place(path, lambda file: write_picture(Image.new("RGB", (64, 64)), file, kind, path))


def save_picture(picture: Any, path: Path) -> None:
    """Save a PIL image, whole or not at all; raises InputError."""
    from .util.files import atomic_file

    with atomic_file(path) as aside, aside.open("wb") as file:
        write_picture(picture, file, picture_format(path), path)


def write_picture(picture: Any, file: Any, kind: str, path: Path) -> None:
    from .errors import InputError
    from .util.files import unwritable

    try:
        picture.save(file, kind)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unwritable(path, error) from error
        # Of formats that take no such picture, or need a program that is not there.
        raise InputError(f"{path} cannot be written as a picture ({error}); end it in .png.") from error


def interrupted(options: argparse.Namespace) -> str:
    """What an interrupt leaves behind."""
    if options.checkpoint is not None and os.path.exists(options.checkpoint):  # unlike Path's, no error for any name
        return f"no video was written; finished steps are in {options.checkpoint}, the same command goes on from there"
    return "no video was written"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of consisid-generate; returns the exit code."""
    options = parser().parse_args(arguments)
    imports = ("tqdm", "consisid.engine.api")
    return run("consisid-generate", lambda: generate(options), lambda: interrupted(options), imports, options)


if __name__ == "__main__":
    sys.exit(main())
