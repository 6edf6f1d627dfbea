"""The table of faults (tests/mutants) still fits the code; `make mutants` runs it."""

from pathlib import Path

import pytest
from mutants.run import SURVIVED, TABLE, Fault, read_faults, read_rows, seen_by

ROOT = Path(__file__).parents[2]
FAULTS = read_faults()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_put_where_it_belongs(fault):
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
    assert fault.new != fault.old
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).exists()
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text() if name else True


def test_the_table_is_of_these_faults():
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 90
    rows = read_rows()
    assert list(rows) == ["fault", *(name for name in names if name in rows)]
    assert SURVIVED not in TABLE.read_text()


def test_a_fault_is_seen_or_survives(tmp_path):
    """On a tree of one file and its test; afterwards the file is what it was."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "sum.txt").write_text("1 + 1")
    (tmp_path / "tests" / "test_sum.py").write_text(
        "from pathlib import Path\n\ndef test_sum():\n    assert eval(Path('sum.txt').read_text()) == 2\n"
    )
    tests = ["tests/test_sum.py"]
    assert seen_by(tmp_path, Fault("x", "sum.txt", "1 +", "2 +", tests)) == "tests/test_sum.py::test_sum"
    assert seen_by(tmp_path, Fault("x", "sum.txt", "1 + 1", "0 + 2", tests)) == SURVIVED
    with pytest.raises(ValueError, match=r"is in sum\.txt 2 times, not once"):
        seen_by(tmp_path, Fault("x", "sum.txt", "1", "2", tests))
    with pytest.raises(ValueError, match="did not run"):
        seen_by(tmp_path, Fault("x", "sum.txt", "1 +", "2 +", ["tests/test_none.py"]))
    assert (tmp_path / "sum.txt").read_text() == "1 + 1"
