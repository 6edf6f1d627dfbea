"""consisid-generate: a video from an engine folder, a photo and a prompt."""

import argparse
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from .flags import DYNAMIC, NEEDS, factor, like, parser, shortcuts_of
from .util.cli import REFUSED, run, show
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


def devices_of(text: str | None) -> int | list[str] | str | None:
    """--devices as open() takes it: a number or names; the processes of torchrun where it started this one."""
    from torch.distributed import is_torchelastic_launched

    from .errors import InputError

    if is_torchelastic_launched():
        if text is not None:
            raise InputError(f"torchrun has started the devices; leave out --devices {text}.")
        return "torchrun"
    if text is None:
        return None
    return int(text) if text.isdecimal() else [name.strip() for name in text.split(",")]


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
    from .errors import InputError
    from .postprocess import enlarging, interpolation
    from .util.mp4 import frame_rate
    from .util.progress import Progress
    from .util.video_files import read_settings, save_picture

    check_places(options)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    options.upscale, shortcuts = factor(options.upscale), shortcuts_of(options)
    rate = None if options.fps is None else frame_rate(options.fps)
    between = None if options.interpolate is None else interpolation(options.interpolate)
    if between is not None and rate is None:
        raise InputError("--interpolate makes frames for another frame rate; give --fps too, such as --fps 16.")
    before = None if options.like is None else read_settings(options.like)
    engine = ConsisID.open(
        Path(options.engine), options.device, memory=options.memory, verify=options.verify,
        devices=devices_of(options.devices), mesh=options.mesh,
    )  # fmt: skip
    larger = None if options.upscale is None else enlarging(options.upscale, str(engine.device))
    if between is not None and rate is not None:
        between(iter(()), frame_rate(engine.variant.fps), rate)  # refused before anything is computed
    if before is not None:
        compare_engines(options.like, before, engine)
    load_loras(engine, options)
    person = person_of(engine, options)
    if options.save_crop is not None:
        save_picture(person.preview(), options.save_crop)
    if options.save_identity is not None:
        person.save(options.save_identity)
    several = candidates(seed, options)
    with Progress("denoising", options.steps * len(several.get("seeds", "1")), "step") as progress:

        def step(_engine: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress.advance()
            return tensors

        made = engine.generate(
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
            seed=None if several else seed,
            callback_on_step_end=step,
            output_type="uint8" if several else "stream",
            checkpoint=options.checkpoint,
            checkpoint_every=options.checkpoint_every,
            on_oom=options.on_oom,
            shortcuts=shortcuts,
            **several,
        )
    video = made[0] if several else made
    given = ("image", "mode", "key_points", "aligned", "lora", "lora_weight", "fps", "interpolate", "upscale")
    face = options.face if isinstance(options.face, str | int) else ",".join(map(str, options.face))
    video.settings |= {"folder": options.engine, "face": face, **{name: getattr(options, name) for name in given}}
    video.save(options.output, options.fps, interpolate=options.interpolate, upscale=larger)
    frames, height, width = video.shape
    text = f"{options.output}: {width}x{height}, {frames} frames at {video.fps} per second"
    if options.fps is not None:
        text += f", {'interpolated to' if options.interpolate else 'played at'} {options.fps:g}"
    text += f", seed {video.settings.get('seed', seed)}" + "".join(
        f"\n  approximation: {line}" for line in video.settings.get("approximations", [])
    )
    for each, score in video.stats.scores.items():
        text += f"\n  seed {each}: " + ("no face" if score is None else f"ArcFace cosine {score:.3f}")
    values = {"output": str(options.output), "settings": video.settings, "stats": asdict(video.stats)}
    show(options, values, f"{text}\n{video.stats.summary()}")


def candidates(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The seeds of --best-of, as generate() takes them; empty without it."""
    from .errors import InputError
    from .run.options import MOST_VIDEOS

    if options.best_of is None:
        if options.good_enough is not None:
            raise InputError("--good-enough ends --best-of early; give that too, such as --best-of 4.")
        return {}
    if not 1 <= options.best_of <= MOST_VIDEOS:
        raise InputError(f"--best-of {options.best_of} has to be from 1 to {MOST_VIDEOS}.")
    seeds = [(seed + i) % 2**64 for i in range(options.best_of)]
    return {"seeds": seeds, "best_of": "identity", "good_enough": options.good_enough}


def compare_engines(file: Path, before: Any, engine: Any) -> None:
    """Warn where a video is made again by another engine or scheduler."""
    now = {"variant": engine.variant.name, "key": engine.manifest.spec.key}
    if before.get("engine") != now or before.get("scheduler") != type(engine.scheduler).__name__:
        warnings.warn(f"{file} was made by another engine than {engine.folder}: the video differs.", stacklevel=2)


def check_places(options: argparse.Namespace) -> None:
    """Whether everything that will be written can be, tried with what will write it.

    Raises:
        InputError: it cannot, or two things would be written to one place.
    """
    from .errors import InputError
    from .face import identity
    from .util.files import check_place
    from .util.mp4 import frame_rate
    from .util.video_files import check_picture, check_target

    checks: dict[str, Callable[[Path], None]] = {
        "output": partial(check_target, rate=None if options.fps is None else frame_rate(options.fps)),
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
    options = parse(parser, "generate", "engine", NEEDS, arguments, {"like": like})
    if os.environ.get("TORCHELASTIC_RUN_ID") and os.environ.get("RANK") != "0":  # torchrun started this for a device
        from .parallel.follower import main as follow

        return follow() if options.devices is None else REFUSED
    imports = ("tqdm", "consisid.engine.api")
    return run("consisid-generate", lambda: generate(options), lambda: interrupted(options), imports, options)


if __name__ == "__main__":
    sys.exit(main())
