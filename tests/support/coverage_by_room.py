"""Coverage by room, from the .coverage of pytest-cov (`make coverage`); ends with 1 where a room is below LEAST."""

import sys
from collections import Counter
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).parents[2]
LEAST = 90  # per cent of a room's lines


def room_of(file: Path) -> str:
    """The folder below a part, or the part for its own files."""
    inside = file.resolve().relative_to(ROOT)
    return "/".join(inside.parts[:2]) if len(inside.parts) > 2 else inside.parts[0]


def main() -> int:
    measured = Coverage(data_file=str(ROOT / ".coverage"))
    measured.load()
    lines, missing = Counter[str](), Counter[str]()
    for name in measured.get_data().measured_files():
        if not Path(name).resolve().is_relative_to(ROOT):  # a copy with a fault, of the checks of kernels
            continue
        _, statements, _, missed, _ = measured.analysis2(name)
        lines[room_of(Path(name))] += len(statements)
        missing[room_of(Path(name))] += len(missed)
    low = False
    for room in sorted(lines):
        share = 100 * (1 - missing[room] / max(1, lines[room]))
        low |= share < LEAST
        print(f"{room:<24} {lines[room]:>6} lines {share:6.1f} %{'  below the least' if share < LEAST else ''}")
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
