"""consisid-generate: a video from an engine folder, a photo and a prompt."""

import argparse
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .flags import DYNAMIC, NEEDS, factor, like, parser, shortcuts_of
from .util.cli import run, show
from .util.flags import parse


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
    options.upscale, shortcuts = factor(options.upscale), shortcuts_of(options)
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
            shortcuts=shortcuts,
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
    text += f", seed {seed}" + "".join(
        f"\n  approximation: {line}" for line in video.settings.get("approximations", [])
    )
    values = {"output": str(options.output), "settings": video.settings, "stats": asdict(video.stats)}
    show(options, values, f"{text}\n{video.stats.summary()}")


def compare_engines(file: Path, settings: dict[str, Any]) -> None:
    """Warn where a video is made again by another engine."""
    from .util.video_files import read_settings

    before = read_settings(file).get("engine")
    if before != settings.get("engine"):
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
