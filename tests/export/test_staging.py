"""Where a build happens is its user's own: a folder of somebody else is neither taken over nor emptied."""

import json
import os
import stat
from contextlib import suppress

import pytest

from consisid.engine.errors import EngineError
from consisid.engine.manifest import GraphEntry
from consisid.engine.util.files import atomic_dir, sha256
from consisid.export import build
from consisid.export.staging import Staging, staging

IN_THE_WAY = r"\.engine\.building is in the way.*remove it, or name another folder"


def left(tmp_path):
    """What a killed build of ours leaves."""
    folder = tmp_path / ".engine.building"
    folder.mkdir(mode=0o700)
    Staging(folder, "source")
    return folder


def refused(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EngineError, match=IN_THE_WAY), staging(tmp_path / "engine", "other source"):
        pytest.fail("taken over")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_build_left_is_taken(tmp_path):
    folder = left(tmp_path)
    with staging(tmp_path / "engine", "source") as work:
        assert work.place == folder


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    """The user's own, of that name: it was emptied."""
    (tmp_path / ".engine.building").mkdir()
    (tmp_path / ".engine.building" / "notes.txt").write_text("mine")
    refused(tmp_path)
    with pytest.raises(EngineError, match=IN_THE_WAY):
        build("tiny", tmp_path / "engine", backend="eager")
    assert (tmp_path / ".engine.building" / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_left_alone(tmp_path):
    os.chown(left(tmp_path), 1234, 1234)
    refused(tmp_path)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_left_alone(tmp_path, mode):
    left(tmp_path).chmod(mode)
    refused(tmp_path)


def test_a_link_is_not_followed(tmp_path):
    left(tmp_path).rename(tmp_path / "elsewhere")
    (tmp_path / ".engine.building").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match=r"engine cannot be written"), staging(tmp_path / "engine", "source"):
        pytest.fail("taken over")
    assert (tmp_path / "elsewhere" / "source.key").read_text() == "source"


def test_nobody_else_can_write_to_a_build(tmp_path):
    mask = os.umask(0)
    try:
        with staging(tmp_path / "engine", "source") as work:
            assert stat.S_IMODE(work.place.stat().st_mode) == 0o700
    finally:
        os.umask(mask)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"\xff", b"[" * 100_000, b'{"backend": 3}', b'{"backend": "eager", "weights": [], "seconds": NaN}',
     json.dumps({"backend": "x", "weights": [], "seconds": 1.0, "file": "../../../etc/passwd"}).encode()],
)  # fmt: skip
def test_a_damaged_entry_is_a_graph_that_is_not_finished(tmp_path, text):
    with staging(tmp_path / "engine", "source") as work:
        work.entries.mkdir()
        work.finish("block", GraphEntry("eager", [], 1.0))
        assert work.finished("block") == GraphEntry("eager", [], 1.0)
        (work.entries / "block.json").write_bytes(text)
        assert work.finished("block") is None


def test_a_graph_whose_file_was_changed_is_not_finished(tmp_path):
    """Of the same size: its hash tells."""
    with staging(tmp_path / "engine", "source") as work:
        work.entries.mkdir()
        (work.folder / "graphs").mkdir()
        file = work.folder / "graphs" / "block.bin"
        file.write_bytes(b"machine code")
        entry = GraphEntry("inductor", [], 1.0, file="graphs/block.bin", bytes=12, sha256=sha256(file))
        work.finish("block", entry)
        assert work.finished("block") == entry
        file.write_bytes(b"machine cods")
        assert work.finished("block") is None
        file.unlink()
        assert work.finished("block") is None


def test_a_folder_aside_has_a_name_that_cannot_be_guessed_and_is_short(tmp_path):
    target, names = tmp_path / ("x" * 255), set()
    for _ in range(3):
        with suppress(KeyError), atomic_dir(target) as aside:
            names.add(aside.name)
            raise KeyError
    assert len(names) == 3
    assert not list(tmp_path.iterdir())
