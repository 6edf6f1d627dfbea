"""The flags of consisid-serve, and what they mean."""

import argparse
from pathlib import Path

from ..errors import InputError, shown
from ..util.cli import add_common
from ..util.flags import HelpFormatter
from .settings import Limits, Retention, Settings

EXAMPLE = """example:
  consisid-serve engines/preview --memory 20GiB
  curl -F prompt="A person walks through fresh snow." -F input_reference=@me.jpg http://127.0.0.1:8000/v1/videos
"""
DAY = 86400.0


def default_data() -> Path:
    """Where jobs, people and videos are kept where nobody says otherwise."""
    return Path.home() / ".local" / "share" / "consisid"


def parser(strict: bool = True) -> argparse.ArgumentParser:
    """strict: what has to be given has to be on the command line."""
    p = argparse.ArgumentParser(
        "consisid-serve", description="Serve videos of people in photos, with OpenAI's video API and a page.",
        epilog=EXAMPLE, formatter_class=HelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    p.add_argument(
        "engine", nargs=None if strict else "?", default=argparse.SUPPRESS,
        help="engine folder made by consisid-build",
    )  # fmt: skip
    p.add_argument("--host", default="127.0.0.1", help="where to listen; beyond this machine with --api-key-file only")
    p.add_argument("--port", type=int, default=8000, help="0 for any that is free (default 8000)")
    p.add_argument(
        "--data", type=Path, metavar="FOLDER", help="jobs, people and videos (default ~/.local/share/consisid)"
    )
    p.add_argument("--model-name", metavar="NAME", help="what clients call the model (default: consisid-VARIANT)")
    p.add_argument("--no-page", action="store_true", help="the API alone, without the page at /")
    machine = p.add_argument_group("machine")
    machine.add_argument(
        "--devices", nargs="+", default=[], metavar="D", help="an engine on each (default: what it was built for)"
    )
    machine.add_argument(
        "--per-video", type=int, default=1, metavar="N", help="devices that share each video (default 1)"
    )
    machine.add_argument("--memory", help="of each device, at most: 8GiB, bytes, or auto (default: no limit)")
    machine.add_argument("--ahead", type=int, default=4, metavar="N", help="videos an engine may batch (default 4)")
    machine.add_argument("--lora", nargs="+", default=[], metavar="NAME=LORA", help="LoRAs that clients may name")
    machine.add_argument(
        "--checkpoint-every", type=int, default=5, metavar="N", help="steps that may be lost (default 5)"
    )
    machine.add_argument("--preview-every", type=int, default=1, metavar="N", help="steps between previews (default 1)")
    ray = p.add_argument_group("several GPUs or machines")
    ray.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="as a Ray Serve application, here or in a cluster"
    )
    ray.add_argument(
        "--replicas", type=int, nargs="+", default=[1], metavar="N", help="of --ray, or the least and most"
    )
    ray.add_argument("--gpus", type=float, metavar="N", help="of each replica (default 1; 0 for a CPU)")
    access = p.add_argument_group("access")
    access.add_argument("--api-key-file", type=Path, metavar="FILE", help="an API key on each line, or NAME KEY")
    access.add_argument("--allow-host", nargs="+", default=[], metavar="NAME", help="photos may be fetched from there")
    limits = p.add_argument_group("limits")
    standard, keep = Limits(), Retention()
    limits.add_argument("--queue", type=int, default=standard.waiting, metavar="N", help="videos that may wait (64)")
    limits.add_argument("--queue-per-key", type=int, metavar="N", help="of one key (default: half, with several keys)")
    limits.add_argument("--max-upload", default="32MiB", metavar="SIZE", help="of a request (default 32MiB)")
    limits.add_argument("--max-pixels", type=int, default=standard.pixels, metavar="N", help="of a photo (40 million)")
    limits.add_argument("--max-seconds", type=float, metavar="S", help="from asking for a video to its end (no limit)")
    limits.add_argument("--keep-days", type=float, default=keep.seconds / DAY, metavar="D", help="videos stay (7)")
    limits.add_argument("--keep-bytes", default="20GiB", metavar="SIZE", help="of all videos; the oldest go (20GiB)")
    add_common(p)
    return p


def settings_of(options: argparse.Namespace) -> Settings:
    """Raises InputError for what cannot be."""
    from ..memory.budget import parse as size

    for name in ("per_video", "ahead", "checkpoint_every", "preview_every", "queue", "max_pixels"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)} has to be at least 1.")
    for name in ("max_seconds", "keep_days"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)} has to be more than 0.")
    loras = {}
    for each in options.lora:
        name, equals, source = each.partition("=")
        if not (name and equals and source) or name in loras:
            raise InputError(f"--lora {shown(each)}: give NAME=LORA, each name once.")
        loras[name] = source
    data = options.data or default_data()
    limits = Limits(
        waiting=options.queue, waiting_per_key=options.queue_per_key, body=size(options.max_upload, 0) or 0,
        pixels=options.max_pixels, seconds=options.max_seconds,
        hosts=frozenset(name.lower() for name in options.allow_host),
    )  # fmt: skip
    return Settings(
        folder=Path(options.engine).absolute(), data=data.absolute(), model=options.model_name,
        devices=tuple(options.devices), per_video=options.per_video, memory=options.memory, loras=loras,
        keys=options.api_key_file,
        ahead=options.ahead, checkpoint_every=options.checkpoint_every, preview_every=options.preview_every,
        page=not options.no_page, limits=limits,
        retention=Retention(options.keep_days * DAY, size(options.keep_bytes, 0) or 0),
    )  # fmt: skip
