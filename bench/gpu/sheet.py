"""The file of a phase, written row by row, so that what is interrupted goes on where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consisid.engine.util.files import atomic_file

SCHEMA = 2
LATER = "left for the next call: the phase's time was up"


class Sheet:
    """DIR/<phase>.json, rewritten whole after each row.

    A row that was made by other sources, another PyTorch or Triton, or on another GPU is measured anew, and so is one
    that failed or was left for lack of time.

    Args:
        head: what the phase measures.
        made: of every row from now on: what it is measured on and by.
        again: whether a row is measured anew, by its name.
    """

    def __init__(
        self, folder: Path, phase: str, head: dict[str, Any], made: dict[str, Any], again: Callable[[str], bool]
    ):  # fmt: skip
        self.file, self.made = folder / f"{phase}.json", made
        self.values: dict[str, Any] = {"schema": SCHEMA, "phase": phase, "finished": False, **head, "rows": []}
        found = json.loads(self.file.read_text()) if self.file.is_file() else {}
        if found.get("schema") == SCHEMA and all(found[key] == head[key] for key in ("variant", "shape", "dtype")):
            kept = [row for row in found["rows"] if row["made"] == made and not is_open(row) and not again(row["name"])]
            self.values |= {"rows": kept, "finished": bool(found["finished"]) and len(kept) == len(found["rows"])}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self.values["rows"])

    @property
    def finished(self) -> bool:
        return bool(self.values["finished"])

    def add(self, row: dict[str, Any]) -> None:
        self.values["rows"].append({**row, "made": self.made})
        self.write()

    def finish(self) -> None:
        self.values["finished"] = not any(map(is_open, self.rows))
        self.write()

    def write(self) -> None:
        with atomic_file(self.file) as aside:
            aside.write_text(json.dumps(self.values, indent=1) + "\n")


def is_open(row: dict[str, Any]) -> bool:
    """Whether a later call has to measure a row again."""
    return "failed" in row or row.get("unmeasured") == LATER


def ceilings_of(folder: Path) -> dict[str, float]:
    """The best product and copy of an earlier ceilings phase, or nothing."""
    file = folder / "ceilings.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    products = [r["tflops"] for r in rows if "tflops" in r and "fp8" not in r["name"]]
    copies = [r["gbps"] for r in rows if "gbps" in r and "host" not in r["name"]]
    return {key: max(values) for key, values in (("tflops", products), ("gbps", copies)) if values}


def line(row: dict[str, Any], ceilings: dict[str, float] | None = None) -> str:
    """A row for the terminal, with its shares of the ceilings."""
    for key, words in (("unmeasured", "not measured"), ("failed", "FAILED")):
        if key in row:
            return f"  {row['name'][:60]:<60} {words}: {row[key]}"
    text = f"  {row['name'][:60]:<60} {row['seconds'] * 1e3:10.3f} ms"
    for key, unit in (("tflops", "TFLOP/s"), ("gbps", "GB/s")):
        if key in row:
            share = f" ({row[key] / ceilings[key]:4.0%})" if ceilings and key in ceilings else ""
            text += f" {row[key]:9.4g} {unit}{share}"
    text += f"  error {row['error']:.1e}" if row.get("error") is not None else ""
    return text + (f"\n      {row['shown']}" if "shown" in row else "")
