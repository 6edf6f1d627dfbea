"""The flags of consisid-generate, and what they mean to generate()."""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

from .util.cli import add_common
from .util.flags import HelpFormatter

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
        formatter_class=HelpFormatter, allow_abbrev=False,
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
    p.add_argument(
        "--like",
        type=Path,
        metavar="MP4",
        help="with the flags that this video was made with, where they are not given",
    )
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
    video.add_argument(
        "--best-of", type=int, metavar="N",
        help="make N videos, of the seed and those that follow, and keep the one that is most like the person",
    )  # fmt: skip
    video.add_argument(
        "--good-enough", type=float, metavar="X", help="of --best-of: no further one after an ArcFace cosine of X"
    )
    less = p.add_argument_group(
        "approximations", "each leaves something out, and is named in the file and in what is printed"
    )
    less.add_argument(
        "--cache", metavar="X", help="step cache: a threshold such as 0.15, or a factor to aim at such as 2x"
    )
    less.add_argument(
        "--first-block", type=float, metavar="X",
        help="first-block cache instead: the threshold, such as 0.1; the content decides which steps are computed",
    )  # fmt: skip
    less.add_argument("--guidance-window", metavar="FIRST:END", help="guidance in these steps only, such as 0:30")
    less.add_argument("--guidance-every", type=int, metavar="N", help="the unconditional half in every Nth step only")
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
    machine.add_argument(
        "--devices", metavar="N", help="several for one video: how many, or which, such as 0,1 (default: one)"
    )
    machine.add_argument("--mesh", help="of --devices: what they share, such as cfg=2,ulysses=3 (default: by a rule)")
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
    """The flags that make a video again, from what its file says; raises ValueError where that is nothing, or no flags.

    Not the engine: a folder is code, and a video may be anybody's.
    """
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
    shortcuts = found.get("shortcuts")
    if isinstance(shortcuts, dict):
        left_out = ("cache", "first_block", "guidance_every")
        values |= {name: value for name, value in shortcuts.items() if name in left_out}
        if isinstance(window := shortcuts.get("guidance_window"), list):
            values["guidance_window"] = ":".join(map(str, window))
    said = {
        "seed": found.get("seed") is None,
        "prompt": found.get("prompt") is None,
        "schedule": bool(found.get("schedule")),
        "eta": found.get("eta") not in (None, 0),
        "videos": found.get("videos") not in (None, 1),
    }
    if any(said.values()):
        what = next(name for name, odd in said.items() if odd)
        raise ValueError(f"its {what} cannot be given on a command line; repeat it in Python")
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


def shortcuts_of(options: argparse.Namespace) -> dict[str, Any]:
    """The approximations that were asked for, as generate() takes them; raises InputError for a window that is none."""
    from .errors import InputError, shown
    from .shortcuts import Shortcuts

    found: dict[str, Any] = {}
    if options.cache is not None:
        found["cache"] = options.cache
    if options.first_block is not None:
        found["first_block"] = options.first_block
    if options.guidance_every is not None:
        found["guidance_every"] = options.guidance_every
    if options.guidance_window is not None:
        first, _, end = options.guidance_window.partition(":")
        try:
            found["guidance_window"] = int(first), int(end)
        except ValueError:
            given = shown(options.guidance_window)
            raise InputError(f"--guidance-window {given} is no FIRST:END, such as 0:30.") from None
    Shortcuts.of(found)
    return found
