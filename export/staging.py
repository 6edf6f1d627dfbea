"""Where a build happens: a folder beside the output, kept when a build is killed, so that the next one goes on."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from consisid.engine.errors import EngineError
from consisid.engine.files import file_aside, sha256
from consisid.engine.manifest import BuildSpec, GraphEntry


class Staging:
    """A build under way. Each finished graph has an entry beside its file; an entry is written after its file."""

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, spec: BuildSpec) -> None:
        """Keep what an earlier build of the same specification finished; throw away what another left."""
        mark = self.folder / "spec.key"
        if not mark.is_file() or mark.read_text() != spec.key:
            shutil.rmtree(self.folder / "graphs", ignore_errors=True)
            mark.write_text(spec.key)
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
        (self.folder / "spec.key").unlink()
        for entry in (self.folder / "graphs").glob("*.entry.json"):
            entry.unlink()
        if not any((self.folder / "graphs").iterdir()):
            (self.folder / "graphs").rmdir()


@contextmanager
def staging(output: Path) -> Iterator[Staging]:
    """The staging folder of `output`, which takes its place when the block ends well.

    What fails on purpose before a graph is finished leaves nothing; a kill leaves the folder for the next build.

    Raises:
        EngineError: the output exists, or another process is building it.
    """
    if output.exists():
        raise EngineError(f"{output} exists already; name another folder, or remove it first.")
    output.parent.mkdir(parents=True, exist_ok=True)
    folder, lock = (output.with_name(f".{output.name}.{kind}") for kind in ("building", "lock"))
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EngineError(f"Another process is building {output}; wait for it, or name another folder.") from None
        try:
            folder.mkdir(exist_ok=True)
            work = Staging(folder)
            yield work
            os.rename(folder, output)
        except BaseException:
            if not any((folder / "graphs").glob("*.entry.json")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            lock.unlink(missing_ok=True)
