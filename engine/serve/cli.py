"""consisid-serve: an HTTP service over an engine folder."""

import argparse
import sys
from collections.abc import Sequence

from ..errors import BackendError, InputError
from ..util.cli import run
from ..util.flags import parse
from .flags import parser, settings_of


def serve(options: argparse.Namespace) -> None:
    """The work of the command."""
    from .keys import is_loopback

    settings = settings_of(options)
    if not is_loopback(options.host) and settings.keys is None:
        raise InputError(
            f"--host {options.host} is reached from other machines; give --api-key-file, or listen at 127.0.0.1."
        )
    try:
        if options.ray is not None:
            from . import replicas

            scale = replicas.scale_of(settings, options.replicas, options.gpus)
            return replicas.run(settings, options.host, options.port, options.ray, scale)
        from . import process
    except ModuleNotFoundError as error:
        raise BackendError(f"{error.name} is not installed; pip install 'consisid[serve]'.") from None
    return process.run(settings, options.host, options.port)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of consisid-serve; returns the exit code."""
    options = parse(parser, "serve", "engine", ("engine",), arguments)
    return run("consisid-serve", lambda: serve(options), lambda: "what was accepted goes on with the next start",
               ("tqdm", "consisid.engine.api"), options)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
