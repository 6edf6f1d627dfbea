"""Videos and characters that were asked for, in SQLite: they outlive the server."""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

QUEUED, RUNNING, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"  # OpenAI's words
ENDED = (COMPLETED, FAILED)
VERSION = 1
# `number` is the order in which they came; a deleted one is not used again.
SCHEMA = """
CREATE TABLE videos (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, status TEXT NOT NULL,
    created REAL NOT NULL, deadline REAL, started REAL, ended REAL, attempts INTEGER NOT NULL DEFAULT 0,
    request TEXT NOT NULL, repeat TEXT, code TEXT, message TEXT, bytes INTEGER NOT NULL DEFAULT 0,
    facts TEXT NOT NULL DEFAULT '{}', UNIQUE (owner, repeat)
);
CREATE INDEX videos_by_status ON videos (status, ended);
CREATE TABLE characters (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, name TEXT NOT NULL,
    created REAL NOT NULL
);
"""


@dataclass(frozen=True)
class VideoRow:
    """A video that was asked for. Times are in seconds since 1970.

    Attributes:
        number: its place in the order in which they came.
        owner: whose it is.
        deadline: when it has to have ended.
        attempts: how often it was begun.
        request: what it is made of, as wanted.Wanted has it.
        repeat: the client's Idempotency-Key.
        code, message: why it failed.
        bytes: of its files.
        facts: what is known since it was made: its size and length, seconds per stage.
    """

    number: int
    id: str
    owner: str
    status: str
    created: float
    deadline: float | None
    started: float | None
    ended: float | None
    attempts: int
    request: dict[str, Any]
    repeat: str | None
    code: str | None
    message: str | None
    bytes: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CharacterRow:
    """A person that was stored."""

    number: int
    id: str
    owner: str
    name: str
    created: float


class Store:
    """The tables, from any thread.

    Raises:
        sqlite3.Error: a file that is damaged or no such store.
    """

    def __init__(self, file: Path):
        self._lock = Lock()
        self._db = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # what was accepted stays accepted
        with self._change() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError(f"{file} is of version {version}, and this server writes {VERSION}")
            if version == 0:
                for statement in SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def add_video(
        self, id: str, owner: str, request: Mapping[str, Any], deadline: float | None, repeat: str | None = None
    ) -> VideoRow:
        """A video that waits; raises sqlite3.IntegrityError for an Idempotency-Key that this owner used before."""
        with self._change() as db:
            db.execute(
                "INSERT INTO videos (id, owner, status, created, deadline, request, repeat)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (id, owner, QUEUED, time.time(), deadline, json.dumps(request), repeat),
            )
            found = db.execute("SELECT * FROM videos WHERE id = ?", (id,)).fetchone()
        return _video(found)

    def video(self, id: str, owner: str | None = None) -> VideoRow | None:
        """None where there is none, or where it is not this owner's."""
        found = self._rows("SELECT * FROM videos WHERE id = ? AND ? IN (owner, '')", id, owner or "")
        return _video(found[0]) if found else None

    def repeated(self, owner: str, repeat: str) -> VideoRow | None:
        """The video that an owner asked for with this Idempotency-Key."""
        found = self._rows("SELECT * FROM videos WHERE owner = ? AND repeat = ?", owner, repeat)
        return _video(found[0]) if found else None

    def videos(self, owner: str, after: str | None, limit: int, newest_first: bool) -> list[VideoRow]:
        """Those of an owner, behind the one called `after`."""
        order, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        behind = f"AND number {sign} (SELECT number FROM videos WHERE id = ? AND owner = ?)" if after else ""
        values = (owner, *((after, owner) if after else ()), limit)
        query = f"SELECT * FROM videos WHERE owner = ? {behind} ORDER BY number {order} LIMIT ?"
        return [_video(row) for row in self._rows(query, *values)]

    def unfinished(self) -> list[VideoRow]:
        """What is to be made, in the order in which it came."""
        query = "SELECT * FROM videos WHERE status IN (?, ?) ORDER BY number"
        return [_video(row) for row in self._rows(query, QUEUED, RUNNING)]

    def ended(self) -> list[VideoRow]:
        """What was made or failed, the oldest first."""
        return [_video(row) for row in self._rows("SELECT * FROM videos WHERE status IN (?, ?) ORDER BY ended", *ENDED)]

    def attempt(self, id: str) -> None:
        """A worker is told to make it."""
        self._set("attempts = attempts + 1", id)

    def begin(self, id: str) -> None:
        """Its first step is done."""
        self._set("status = ?, started = coalesce(started, ?)", RUNNING, time.time(), id)

    def requeue(self, id: str, counted: bool = True) -> None:
        """Whoever had it is gone. counted: the attempt failed; else it was ended in order."""
        self._set(f"status = ?, attempts = attempts - {0 if counted else 1}", QUEUED, id)

    def complete(self, id: str, facts: Mapping[str, Any], size: int) -> None:
        self._set("status = ?, ended = ?, facts = ?, bytes = ?", COMPLETED, time.time(), json.dumps(facts), size, id)

    def fail(self, id: str, code: str, message: str) -> None:
        self._set("status = ?, ended = ?, code = ?, message = ?", FAILED, time.time(), code, message, id)

    def _set(self, changes: str, *values: Any) -> None:
        with self._change() as db:
            db.execute(f"UPDATE videos SET {changes} WHERE id = ? AND status NOT IN (?, ?)", (*values, *ENDED))

    def delete_video(self, id: str) -> None:
        with self._change() as db:
            db.execute("DELETE FROM videos WHERE id = ?", (id,))

    def add_character(self, id: str, owner: str, name: str) -> CharacterRow:
        with self._change() as db:
            db.execute(
                "INSERT INTO characters (id, owner, name, created) VALUES (?, ?, ?, ?)", (id, owner, name, time.time())
            )
            return CharacterRow(**db.execute("SELECT * FROM characters WHERE id = ?", (id,)).fetchone())

    def character(self, id: str, owner: str) -> CharacterRow | None:
        found = self._rows("SELECT * FROM characters WHERE id = ? AND owner = ?", id, owner)
        return CharacterRow(**found[0]) if found else None

    def characters(self, owner: str, after: str | None, limit: int, newest_first: bool) -> list[CharacterRow]:
        order, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        behind = f"AND number {sign} (SELECT number FROM characters WHERE id = ? AND owner = ?)" if after else ""
        values = (owner, *((after, owner) if after else ()), limit)
        query = f"SELECT * FROM characters WHERE owner = ? {behind} ORDER BY number {order} LIMIT ?"
        return [CharacterRow(**row) for row in self._rows(query, *values)]

    def delete_character(self, id: str) -> None:
        with self._change() as db:
            db.execute("DELETE FROM characters WHERE id = ?", (id,))

    def names(self) -> set[str]:
        """Of everything that has files."""
        return {row["id"] for row in self._rows("SELECT id FROM videos UNION SELECT id FROM characters")}


def _video(row: sqlite3.Row) -> VideoRow:
    values = dict(row)
    return VideoRow(**{**values, "request": json.loads(values["request"]), "facts": json.loads(values["facts"])})
