"""Where a build happens: a folder beside the output, kept when a build is killed, so that the next one goes on."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from consisid.engine.checkpoint.weight_files import check_inside
from consisid.engine.errors import EngineError, InputError
from consisid.engine.manifest import BuildSpec, GraphEntry, Manifest, digest
from consisid.engine.util.files import atomic_file, sha256
from consisid.engine.util.parsing import Unreadable, read_json, validate

SOURCE, SPEC = "source.key", "spec.key"  # of what checkpoint, and to what specification on what machine
OURS = frozenset({SOURCE, SPEC, "engine", "entries"})  # all that a build puts into its staging folder


class Staging:
    """A build under way: `folder` becomes the engine folder; what only the build has to know is beside it.

    Each finished graph has an entry, written after its file. Entries stay until the engine folder has its name, so that
    a build that ends at any point before that goes on with all it has.
    """

    def __init__(self, place: Path, source: str):
        self.place, self.folder, self.entries = place, place / "engine", place / "entries"
        if _read(place / SOURCE) != source:  # what an earlier build placed here may be another checkpoint's
            _remove(place.iterdir())
            (place / SOURCE).write_text(source)
        self.folder.mkdir(exist_ok=True)
        _remove(self.folder.glob(".*"))  # what a kill cut short: a copy of a checkpoint, a manifest

    def begin(self, spec: BuildSpec, machine: Mapping[str, str]) -> None:
        """Keep what an earlier build of the same specification finished here; throw away what another left.

        Args:
            machine: manifest.provenance. A graph of another GPU or PyTorch is not this build's.
        """
        key = digest({"spec": spec.key, "machine": {name: machine.get(name) for name in spec.bound_to}})
        if _read(self.place / SPEC) != key:
            for folder in (self.folder / "graphs", self.entries):
                shutil.rmtree(folder, ignore_errors=True)
            (self.place / SPEC).write_text(key)
        for folder in (self.folder / "graphs", self.entries):
            folder.mkdir(exist_ok=True)

    def finished(self, name: str) -> GraphEntry | None:
        """The entry of a graph that is done, if its file is whole."""
        try:
            entry: GraphEntry = validate(GraphEntry, read_json(self._entry(name)))
            if entry.file is None:
                return entry
            file = self.folder / check_inside(entry.file)
        except (FileNotFoundError, Unreadable):
            return None
        return entry if file.is_file() and sha256(file) == entry.sha256 else None

    def finish(self, name: str, entry: GraphEntry) -> None:
        with atomic_file(self._entry(name)) as aside:
            aside.write_text(json.dumps(asdict(entry)))

    def _entry(self, name: str) -> Path:
        return self.entries / f"{name}.json"

    def end(self, manifest: Manifest, output: Path) -> None:
        """The manifest is the last file of the engine folder; then it moves to its place in one step."""
        graphs = self.folder / "graphs"
        if graphs.is_dir() and not any(graphs.iterdir()):
            graphs.rmdir()
        manifest.write(self.folder)
        os.rename(self.folder, output)
        shutil.rmtree(self.place)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _read(mark: Path) -> str | None:
    return mark.read_text() if mark.is_file() else None


@contextmanager
def staging(output: Path, source: str) -> Iterator[Staging]:
    """The staging folder of `output`, locked for the length of the block.

    What fails before a graph is finished leaves nothing; later, or by a kill, it leaves the folder for the next build
    of the same source. The lock is on the folder itself, so nothing else has to be cleaned up.

    Args:
        source: Source.identity.

    Raises:
        EngineError: the output exists, another process is building it, or its staging folder is somebody else's.
        InputError: it cannot be written.
    """
    folder = output.with_name(f".{output.name}.building")
    _check_free(output)
    held = _open_own(folder, output)
    try:
        _lock(held, output)
        try:
            _check_free(output)  # somebody may have finished it since
            yield Staging(folder, source)
        except BaseException:
            if not any((folder / "entries").glob("*.json")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(held)


def _open_own(folder: Path, output: Path) -> int:
    """Make the staging folder, or take that of a build of ours that was killed; its descriptor.

    What is in it becomes part of an engine, whose files are executed, or is removed. So it has to be this user's alone,
    and hold nothing but what a build puts there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte in it
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{output} cannot be written ({reason}); name another folder.") from None
    state = os.fstat(held)
    if state.st_uid != os.geteuid() or state.st_mode & 0o022 or not OURS.issuperset(os.listdir(held)):
        os.close(held)
        raise EngineError(
            f"{folder} is in the way, and no build of yours left it: it belongs to somebody else, others can write to "
            "it, or it holds other files; remove it, or name another folder."
        )
    return held


def _check_free(output: Path) -> None:
    if os.path.exists(output):  # unlike Path's, no error for a name that is too long
        raise EngineError(f"{output} exists already; name another folder, or remove it first.")


def _lock(held: int, output: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EngineError(f"Another process is building {output}; wait for it, or name another folder.") from None
