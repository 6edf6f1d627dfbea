"""Puts faults into a copy of the sources, one at a time, and says which the tests see: `make mutants`.

    python tests/mutants/run.py [--only REGEX] [--workers N] [--trust]

The faults are in faults.toml, with the tests that have to fail. Nothing is changed here: the copy is of what git has of
this tree, in a temporary folder. docs/mutants.md is written anew; rows of faults that were not asked for stay.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[2]
FAULTS = Path(__file__).with_name("faults.toml")
TABLE = ROOT / "docs" / "mutants.md"
SECONDS = 900  # for the tests of one fault; one that hangs is seen too
HEAD = """# Faults that were put into the code

`make mutants` puts each into a copy of the sources and runs the tests that have to fail (`tests/mutants/faults.toml`).
Bold ones were found by hand when no test saw them. One that survives is a test that is missing.

"""
COLUMNS = ("fault", "file", "seen by")
SURVIVED = "nothing: survived"


@dataclass(frozen=True)
class Fault:
    """`old`, which is in `file` exactly once, becomes `new`; `tests` (files, folders or single ones) have to fail.

    reported: it survived before there was a test for it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: list[str]
    reported: bool = False

    def put_into(self, root: Path) -> str:
        """Change a tree; the text that was there.

        Raises:
            ValueError: the code has moved on.
        """
        path = root / self.file
        text = path.read_text() if path.is_file() else ""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} is in {self.file} {text.count(self.old)} times, not once")
        path.write_text(text.replace(self.old, self.new))
        return text


def read_faults() -> list[Fault]:
    return [Fault(**entry) for entry in tomllib.loads(FAULTS.read_text())["fault"]]


def copy_tree(to: Path) -> Path:
    """What git has of this tree, and what it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if os.path.lexists(ROOT / name):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name, follow_symlinks=False)
    return to


def run_tests(root: Path, tests: list[str], *options: str, seconds: int | None = None) -> tuple[int, str]:
    """pytest's status and output, on the packages of a copy; -1 where it took longer."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *options, *tests]
    environment = os.environ | {
        "PYTHONPATH": str(root / ".typing"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    try:
        run = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, ""
    return run.returncode, run.stdout + run.stderr


def seen_by(root: Path, fault: Fault) -> str:
    """The first test that fails with a fault, or SURVIVED.

    Raises:
        ValueError: the fault cannot be put there, or pytest could not run the tests.
    """
    text = fault.put_into(root)
    try:
        status, output = run_tests(root, fault.tests, "-x", seconds=SECONDS)
    finally:
        (root / fault.file).write_text(text)
    if status == 0:
        return SURVIVED
    if status == -1:
        return "the limit of time"
    found = re.search(r"^(?:FAILED|ERROR) (\S+?)(?:\[.*)?(?: - .*)?$", output, re.MULTILINE)
    if status != 1 or found is None:
        raise ValueError(f"{fault.name}: the tests did not run:\n{output[-3000:]}")
    return found[1]


def read_rows() -> dict[str, str]:
    """The rows of the table that is there, by fault."""
    rows = re.findall(r"^\| \*{0,2}(.+?)\*{0,2} \| .*\|$", TABLE.read_text() if TABLE.is_file() else "", re.MULTILINE)
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")] if rows else []
    return dict(zip(rows, lines, strict=True))


def write_rows(faults: list[Fault], found: dict[str, str]) -> None:
    kept = read_rows()
    for fault in faults:
        if fault.name in found:
            name = f"**{fault.name}**" if fault.reported else fault.name
            test = found[fault.name]
            kept[fault.name] = f"| {name} | {fault.file} | {test if ' ' in test else f'`{test}`'} |"
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|---|"]
    lines += [kept[fault.name] for fault in faults if fault.name in kept]
    survived = sum(SURVIVED in line for line in lines)
    counts = f"{len(lines) - 2} faults, {len(lines) - 2 - survived} seen, {survived} survived.\n\n"
    TABLE.write_text(HEAD + counts + "\n".join(lines) + "\n")


def results(faults: list[Fault], workers: int, trusted: bool) -> Iterator[tuple[Fault, str]]:
    """Each fault and who saw it, in their order; unless they are trusted, the tests have to pass without any."""
    with tempfile.TemporaryDirectory() as folder:
        trees: Queue[Path] = Queue()
        for i in range(workers):
            trees.put(copy_tree(Path(folder) / str(i)))

        def judge(fault: Fault) -> str:
            tree = trees.get()
            try:
                return seen_by(tree, fault)
            finally:
                trees.put(tree)

        tests = sorted({test for fault in faults for test in fault.tests})
        status, output = (0, "") if trusted else run_tests(trees.queue[0], tests)
        if status:
            raise ValueError(f"without a fault the tests do not pass:\n{output[-3000:]}")
        with ThreadPoolExecutor(workers) as pool:
            yield from zip(faults, pool.map(judge, faults), strict=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression that a fault's name or file has to contain")
    parser.add_argument("--workers", type=int, default=2, help="faults at once")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without a fault first")
    arguments = parser.parse_args()
    every = read_faults()
    faults = [fault for fault in every if re.search(arguments.only, f"{fault.name} {fault.file}")]
    found: dict[str, str] = {}
    try:
        for fault, test in results(faults, arguments.workers, arguments.trust):
            found[fault.name] = test
            print(f"{fault.name}: {test}", flush=True)
            write_rows(every, found)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return int(SURVIVED in found.values())


if __name__ == "__main__":
    sys.exit(main())
