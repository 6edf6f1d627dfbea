"""Where a build happens: a folder beside the output, kept when a build is killed, so that the next one goes on."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from consisid.engine.errors import EngineError, InputError
from consisid.engine.files import file_aside, sha256
from consisid.engine.manifest import BuildSpec, GraphEntry

SOURCE, SPEC = "source.key", "spec.key"  # of what checkpoint and to what specification the folder is being built


class Staging:
    """A build under way. Each finished graph has an entry beside its file; an entry is written after its file."""

    def __init__(self, folder: Path, source: str):
        self.folder = folder
        if _read(folder / SOURCE) != source:  # what an earlier build placed here may be another checkpoint's
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            (folder / SOURCE).write_text(source)

    def begin(self, spec: BuildSpec) -> None:
        """Keep what an earlier build of the same specification finished; throw away what another left."""
        if _read(self.folder / SPEC) != spec.key:
            shutil.rmtree(self.folder / "graphs", ignore_errors=True)
            (self.folder / SPEC).write_text(spec.key)
        (self.folder / "graphs").mkdir(exist_ok=True)

    def finished(self, name: str) -> GraphEntry | None:
        """The entry of a graph that is done, if its file is whole."""
        try:
            entry = GraphEntry(**json.loads(self._entry(name).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        if entry.file is None:
            return entry
        file = self.folder / entry.file
        return entry if file.is_file() and sha256(file) == entry.sha256 else None

    def finish(self, name: str, entry: GraphEntry) -> None:
        with file_aside(self._entry(name)) as aside:
            aside.write_text(json.dumps(asdict(entry)))

    def _entry(self, name: str) -> Path:
        return self.folder / "graphs" / f"{name}.entry.json"

    def clean(self) -> None:
        """Leave only what belongs to an engine folder; the manifest, which makes it one, is written after this."""
        for mark in (SOURCE, SPEC):
            (self.folder / mark).unlink()
        for entry in (self.folder / "graphs").glob("*.entry.json"):
            entry.unlink()
        if not any((self.folder / "graphs").iterdir()):
            (self.folder / "graphs").rmdir()


def _read(mark: Path) -> str | None:
    return mark.read_text() if mark.is_file() else None


@contextmanager
def staging(output: Path, source: str) -> Iterator[Staging]:
    """The staging folder of `output`, which takes its place when the block ends well.

    What fails on purpose before a graph is finished leaves nothing; a kill leaves the folder for the next build of the
    same source. The lock is on the folder itself, so nothing else has to be cleaned up.

    Args:
        source: Source.identity.

    Raises:
        EngineError: the output exists, or another process is building it.
        InputError: it cannot be written.
    """
    folder = output.with_name(f".{output.name}.building")
    _check_free(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error.strerror}); name another folder.") from None
    held = os.open(folder, os.O_RDONLY)
    try:
        _lock(held, output)
        try:
            _check_free(output)  # somebody may have finished it since
            yield Staging(folder, source)
            os.rename(folder, output)
        except BaseException:
            if not any((folder / "graphs").glob("*.entry.json")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(held)


def _check_free(output: Path) -> None:
    if output.exists():
        raise EngineError(f"{output} exists already; name another folder, or remove it first.")


def _lock(held: int, output: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EngineError(f"Another process is building {output}; wait for it, or name another folder.") from None
