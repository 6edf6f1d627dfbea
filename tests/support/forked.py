"""Scripts in processes of their own, forks of one that has imported PyTorch and this project: seconds less than
`python -c`. What is about imports, or about variables that libraries read when they are loaded, needs that still."""

import contextlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

PRELOADED = [
    "consisid.engine.api", "consisid.engine.cli", "consisid.export", "consisid.export.cli",
    "diffusers.schedulers.scheduling_dpm_cogvideox",  # of the checkpoints; the engine imports it when it needs one
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a script ended: returncode as in subprocess, negative for a signal."""

    returncode: int
    stdout: str
    stderr: str


def _execute(script: str, arguments: list[str], streams: tuple[str, str], folder: str) -> None:
    """In the fork: as `python -c` would run it."""
    for number, name in enumerate(streams, 1):
        with open(name, "wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    sys.argv = ["-c", *arguments]
    status = 1
    try:
        exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def run_forked(script: str, *arguments: object) -> Ended:
    """Run a script with these arguments to its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        streams = (f"{folder}/out", f"{folder}/err")
        process = context.Process(target=_execute, args=(script, [str(a) for a in arguments], streams, os.getcwd()))
        process.start()
        process.join()
        out, err = (Path(name).read_text(errors="replace") if Path(name).exists() else "" for name in streams)
    assert process.exitcode is not None
    return Ended(process.exitcode, out, err)
