"""Files that are written whole or not at all, and messages of one line."""

import os
import stat
import sys

import pytest

from consisid.engine.errors import LONGEST, ConsisIDError, one_line, shown
from consisid.engine.util.files import atomic_file, check_place


@pytest.fixture(params=[0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_permissions_are_those_of_the_umask(tmp_path, umask):
    """Whatever the writer made of them."""
    with atomic_file(tmp_path / "me.safetensors") as aside:
        aside.write_text("x")
        aside.chmod(0o600)
    assert stat.S_IMODE((tmp_path / "me.safetensors").stat().st_mode) == 0o666 & ~umask


def test_a_name_as_long_as_the_system_takes(tmp_path):
    target = tmp_path / ("a" * 251 + ".mp4")
    check_place(target)
    with atomic_file(target) as aside:
        assert aside.suffix == ".mp4"
        aside.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_nobody_can_guess_where_a_file_is_written(tmp_path):
    names = set()
    for _ in range(3):
        with atomic_file(tmp_path / "x.mp4") as aside:
            names.add(aside.name)
    assert len(names) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a folder"),
        ("a" * 252 + ".mp4", r"cannot be written \(File name too long\)"),
        ("a\0b.mp4", r"cannot be written \(embedded null byte\)"),
        ("pipe.mp4", "is a device or a pipe"),
        ("file/x.mp4", "cannot be written"),
    ],
)
def test_what_is_no_place_for_a_file(tmp_path, name, message):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConsisIDError, match=message):
        check_place(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_a_message_is_one_printable_line():
    assert str(ConsisIDError("a file called x\n\ty\x1b[2J\udcff: no")) == "a file called x y\\x1b[2J\\udcff: no"
    assert str(ConsisIDError("two  spaces in a name")) == "two  spaces in a name"
    long = one_line("begin " + "x" * 80_000 + " do this")
    assert len(long) < LONGEST + 10
    assert long.startswith("begin ")
    assert long.endswith("do this")


def test_a_value_that_cannot_be_shown():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    before = sys.get_int_max_str_digits()  # hypothesis lifts the limit
    sys.set_int_max_str_digits(4300)
    try:
        assert "int" in shown(10**5000)
    finally:
        sys.set_int_max_str_digits(before)
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 10**6)) < 110
    assert shown(Broken()) == "of the type Broken, which cannot be shown,"
