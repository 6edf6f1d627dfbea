"""consisid-generate: a video from an engine folder, a photo and a prompt."""

import argparse
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .util.cli import add_common, run, show
from .util.flags import HelpFormatter, parse

# What --dynamic-cfg means to generate().
DYNAMIC: dict[str, bool | str] = {"off": False, "reference": True, "step": "step"}


EXAMPLE = """example:
  consisid-generate engines/preview --image me.jpg --prompt "A person walks through fresh snow." \\
      --seed 42 --memory 8GiB --output out.mp4
"""
NEEDS = ("engine", "image", "prompt", "output")


def parser(strict: bool = True) -> argparse.ArgumentParser:
    """strict: what has to be given has to be on the command line."""
    p = argparse.ArgumentParser(
        "consisid-generate", description="Make a video of the person in a photo.", epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )  # fmt: skip
    p.add_argument(
        "engine", nargs=None if strict else "?", default=argparse.SUPPRESS,
        help="engine folder made by consisid-build",
    )  # fmt: skip
    p.add_argument(
        "--image", required=strict, nargs="+", metavar="PHOTO",
        help="path or address; of several photos the most typical is taken; or what --save-identity wrote",
    )  # fmt: skip
    p.add_argument("--prompt", required=strict, help="what the person does, and where; long and detailed works best")
    p.add_argument(
        "--output", type=Path, required=strict, metavar="FILE",
        help="the .mp4, .gif or .webp to write; frame_%%03d.png for every frame, .png or .jpg for one",
    )  # fmt: skip
    p.add_argument("--like", type=Path, metavar="MP4", help="as this video was made, in all that is not given")
    video = p.add_argument_group("video")
    video.add_argument("--negative-prompt", help="what to steer away from")
    video.add_argument("--seed", type=int, help="the same seed gives the same video (default: drawn, and printed)")
    video.add_argument("--steps", type=int, default=50, help="denoising steps (default 50)")
    video.add_argument(
        "--guidance-scale", type=float, default=6.0, metavar="W", help="weight of the prompt (default 6)"
    )
    video.add_argument("--dynamic-cfg", choices=DYNAMIC, default="off", help="a weight of the prompt that changes")
    video.add_argument("--height", type=int, metavar="H", help="in pixels (default: what the engine was built for)")
    video.add_argument("--width", type=int, metavar="W", help="in pixels (default: what the engine was built for)")
    video.add_argument("--num-frames", type=int, metavar="F", help="default: what the engine was built for")
    person = p.add_argument_group("person")
    person.add_argument(
        "--face", type=face_choice, default="largest", metavar="WHO",
        help="who is meant in the photo: largest, center, reference, a number from the left, or a box x0,y0,x1,y1",
    )  # fmt: skip
    person.add_argument(
        "--mode", default="crop", help="what the model sees: crop, the aligned face (default), or whole"
    )
    person.add_argument("--key-points", default="crop", help="drawn in the crop (default), or reference: in the photo")
    person.add_argument("--aligned", action="store_true", help="the photo is an aligned face crop already")
    person.add_argument("--save-crop", type=Path, metavar="FILE", help="also save the aligned face on white, a picture")
    person.add_argument("--save-identity", type=Path, metavar="FILE", help="also save the person, for --image")
    lora = p.add_argument_group("LoRA")
    lora.add_argument("--lora", nargs="+", default=[], metavar="LORA", help=".safetensors files, folders or hub ids")
    lora.add_argument("--lora-weight", type=float, nargs="+", metavar="W", help="of --lora: one for all, or one each")
    machine = p.add_argument_group("machine")
    machine.add_argument("--device", help="default: what the engine was built for")
    machine.add_argument("--memory", help="of the device, at most: 8GiB, bytes, or auto (default: no limit)")
    machine.add_argument("--cfg", help="batched or sequential: both halves of guidance at once (default: by memory)")
    machine.add_argument("--decode", help="whole (default without --memory), tiled, exact or tiled-reference")
    machine.add_argument("--tile", type=int, nargs=2, metavar=("H", "W"), help="of --decode, in latent pixels")
    machine.add_argument(
        "--on-oom", choices=("raise", "replan"), default="raise", help="replan: go on with less memory"
    )
    machine.add_argument("--checkpoint", type=Path, metavar="FILE", help="of finished steps; the same command goes on")
    machine.add_argument(
        "--checkpoint-every", type=int, default=5, metavar="N", help="steps between two writings of it (default 5)"
    )
    machine.add_argument("--verify", action="store_true", help="hash the weights too before they are used")
    after = p.add_argument_group("after the model")
    after.add_argument("--fps", type=float, help="frames per second of the file (default: the model's)")
    after.add_argument(
        "--interpolate", nargs="?", const="minterpolate", metavar="HOW",
        help="frames in between for --fps: minterpolate, ffmpeg's (default), or an .onnx file of RIFE",
    )  # fmt: skip
    after.add_argument("--upscale", metavar="HOW", help="a factor such as 2, or a file of Real-ESRGAN")
    add_common(p)
    return p


def like(file: Path) -> dict[str, Any]:
    """The flags that make a video again, from what its file says; raises ValueError where it says nothing."""
    from .util.video_files import read_settings

    found = read_settings(file)
    names = (
        "prompt", "negative_prompt", "seed", "height", "width", "num_frames", "guidance_scale", "cfg", "decode", "tile",
        *("image", "face", "mode", "key_points", "aligned", "lora", "lora_weight", "fps", "interpolate", "upscale"),
    )  # fmt: skip
    values = {name: found[name] for name in names if found.get(name) is not None}
    if "num_inference_steps" in found:
        values["steps"] = found["num_inference_steps"]
    dynamic = [name for name, meaning in DYNAMIC.items() if meaning == found.get("use_dynamic_cfg", False)]
    if not dynamic:
        raise ValueError("it was not written by consisid")
    values["dynamic_cfg"] = dynamic[0]
    if isinstance(found.get("folder"), str):
        values["engine"] = found["folder"]
    return values


def face_choice(text: str) -> str | int | tuple[float, ...]:
    """--face as identify() takes it: a number, a box, or else a word."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return tuple(float(part) for part in text.split(",")) if "," in text else text
    return text


def factor(text: str | None) -> float | str | None:
    """--upscale as save() takes it: a number, or the name of a file."""
    with suppress(ValueError):
        return None if text is None else float(text)
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
    from .postprocess import interpolation, upscaling
    from .util.mp4 import frame_rate
    from .util.progress import Progress
    from .util.video_files import save_picture

    check_places(options)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    options.upscale = factor(options.upscale)
    if options.interpolate is not None:
        interpolation(options.interpolate)
    if options.upscale is not None:
        upscaling(options.upscale)
    if options.fps is not None:
        frame_rate(options.fps)
    engine = ConsisID.open(Path(options.engine), options.device, memory=options.memory, verify=options.verify)
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
            seed=seed,
            callback_on_step_end=step,
            output_type="stream",
            checkpoint=options.checkpoint,
            checkpoint_every=options.checkpoint_every,
            on_oom=options.on_oom,
        )
    given = ("image", "mode", "key_points", "aligned", "lora", "lora_weight", "fps", "interpolate", "upscale")
    face = options.face if isinstance(options.face, str | int) else ",".join(map(str, options.face))
    video.settings |= {"folder": options.engine, "face": face, **{name: getattr(options, name) for name in given}}
    if options.like is not None:
        compare_engines(options.like, video.settings)
    video.save(options.output, options.fps, interpolate=options.interpolate, upscale=options.upscale)
    frames, height, width = video.shape
    text = f"{options.output}: {width}x{height}, {frames} frames at {video.fps} per second"
    if options.fps is not None:
        text += f", {'interpolated to' if options.interpolate else 'played at'} {options.fps:g}"
    text += f", seed {seed}"
    values = {"output": str(options.output), "settings": video.settings, "stats": asdict(video.stats)}
    show(options, values, f"{text}\n{video.stats.summary()}")


def compare_engines(file: Path, settings: dict[str, Any]) -> None:
    """Warn where a video is made again by another engine."""
    from .util.video_files import read_settings

    before = read_settings(file).get("engine")
    if before != settings["engine"]:
        warnings.warn(f"{file} was made by another engine than {settings['folder']}: the video differs.", stacklevel=2)


def check_places(options: argparse.Namespace) -> None:
    """Whether everything that will be written can be, tried with what will write it.

    Raises:
        InputError: it cannot, or two things would be written to one place.
    """
    from .errors import InputError
    from .face import identity
    from .util.files import check_place
    from .util.video_files import check_picture, check_target

    checks: dict[str, Callable[[Path], None]] = {
        "output": check_target,
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


def interrupted(options: argparse.Namespace) -> str:
    """What an interrupt leaves behind."""
    if options.checkpoint is not None and os.path.exists(options.checkpoint):  # unlike Path's, no error for any name
        return f"no video was written; finished steps are in {options.checkpoint}, the same command goes on from there"
    return "no video was written"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of consisid-generate; returns the exit code."""
    options = parse(parser, "generate", NEEDS, arguments, {"like": like})
    imports = ("tqdm", "consisid.engine.api")
    return run("consisid-generate", lambda: generate(options), lambda: interrupted(options), imports, options)


if __name__ == "__main__":
    sys.exit(main())
