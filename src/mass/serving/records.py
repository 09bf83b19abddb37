"""Adaptations of a server -> one SQLite database, a row for each, and back.

A row holds the whole record as JSON, beside the columns that a list is filtered by. Each change is one transaction in
WAL mode, so a row is whole or absent after a crash. `synchronous` is FULL: a record is on disk when `add` returns, at a
loss of power too. That costs one fsync, milliseconds beside the seconds of an adaptation.

Threads share one connection under a lock, and processes share a folder by SQLite's own locks: a writer waits up to
`BUSY_S` for another. The folder must be on a local disk, since WAL mode needs shared memory between the processes.

Every reader names an owner, the hash of an API key, and sees that owner's records alone; None is an administrator.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sqlite3
import threading
import time as clock
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mass.encoding import finite
from mass.errors import ConfigError, RunError
from mass.types import Adaptation

FILE = "records.sqlite3"
VERSION = 1
"""Version of the schema, kept in the database as `user_version`."""
APPLICATION = 0x4D415353
"""Marks a database as ours ("MASS"), kept in it as `application_id`."""
BUSY_S = 30.0
"""Seconds that a change waits for another process."""
PROBLEM_CHARS = 200
"""Characters of a problem that a summary shows and a filter reads."""
MOST = 1000
"""Most entries of one page."""
_SCHEMA = """
CREATE TABLE adaptations (
    id TEXT PRIMARY KEY,
    time REAL NOT NULL,
    owner TEXT NOT NULL,
    model TEXT NOT NULL,
    checkpoint TEXT NOT NULL,
    checkpoint_hash TEXT NOT NULL,
    adapted INTEGER NOT NULL,
    gate TEXT NOT NULL,
    fallback TEXT NOT NULL,
    "right" INTEGER,
    problem TEXT NOT NULL,
    record TEXT NOT NULL,
    extra TEXT NOT NULL
);
CREATE INDEX by_time ON adaptations (time DESC, id DESC);
CREATE INDEX by_owner ON adaptations (owner, time DESC, id DESC);
"""


@dataclass(frozen=True)
class Summary:
    """The columns of a row that a list shows."""

    id: str
    time: float
    """Seconds since 1970, UTC."""
    owner: str
    """`owner_of` the key that asked; empty on a server without keys."""
    model: str
    checkpoint: str
    """Name of the checkpoint as a client chose it."""
    checkpoint_hash: str
    adapted: bool
    """True if the adapted weights answered."""
    gate: str
    """Reason of the gate's decision; empty where the gate was off."""
    fallback: str
    right: bool | None
    """The user's verdict on the answer; None before there is one."""
    problem: str
    """The problem's first `PROBLEM_CHARS` characters."""


@dataclass(frozen=True)
class Entry:
    """One adaptation of a server with all that is kept of it."""

    summary: Summary
    record: Adaptation
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the server keeps besides, as JSON values: the request's options, its usage."""

    @staticmethod
    def of(
        record: Adaptation,
        *,
        id: str,
        owner: str,
        checkpoint: str,
        checkpoint_hash: str,
        time: float | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Entry:
        """Return the entry of a record, made now unless `time` says when."""
        summary = Summary(
            id,
            clock.time() if time is None else time,
            owner,
            record.model,
            checkpoint,
            checkpoint_hash,
            adapted=not record.fallback,
            gate="" if record.gate is None else record.gate.reason,
            fallback=record.fallback,
            right=None,
            problem=record.problem[:PROBLEM_CHARS],
        )
        return Entry(summary, record, extra or {})


_COLUMNS = tuple(f.name for f in dataclasses.fields(Summary))
_SELECTED = ", ".join(f'"{name}"' for name in _COLUMNS)


@dataclass(frozen=True)
class Filters:
    """What the entries of a list must be; None: anything."""

    model: str | None = None
    checkpoint: str | None = None
    checkpoint_hash: str | None = None
    adapted: bool | None = None
    gate: str | None = None
    fallback: str | None = None
    right: bool | Literal["unset"] | None = None
    """'unset': no user has judged the answer."""
    since: float | None = None
    """Made at this time or later."""
    until: float | None = None
    """Made before this time."""
    text: str | None = None
    """A part of the problem's first `PROBLEM_CHARS` characters, in small or capital letters."""

    def conditions(self) -> tuple[list[str], list[Any]]:
        """Return conditions of SQL, and the values of their placeholders in order."""
        equal = ("model", "checkpoint", "checkpoint_hash", "adapted", "gate", "fallback")
        found = [(f'"{name}" = ?', getattr(self, name)) for name in equal]
        found += [("time >= ?", self.since), ("time < ?", self.until)]
        found += [("instr(lower(problem), lower(?)) > 0", self.text)]
        if self.right != "unset":
            found.append(('"right" = ?', self.right))
        given = [(condition, value) for condition, value in found if value is not None]
        unset = ['"right" IS NULL'] if self.right == "unset" else []
        return [*(condition for condition, _ in given), *unset], [value for _, value in given]


@dataclass(frozen=True)
class Page:
    """A part of a list, newest first."""

    entries: tuple[Summary, ...]
    cursor: str | None
    """Asks `Records.list` for the next page; None on the last."""


def owner_of(key: str | None) -> str:
    """Return 32 hex digits that stand for an API key in the records; empty for none. The key is not kept."""
    return "" if key is None else hashlib.sha256(b"mass owner:" + key.encode()).hexdigest()[:32]


class Records:
    """The records in one folder. Safe to use from several threads, and from several processes on one machine."""

    def __init__(self, folder: str | Path) -> None:
        """Open the folder's database, made if it is absent.

        Raises:
            RunError: The folder cannot be written, or its database is damaged, no one of ours, or of another version.
        """
        self._path = Path(folder).expanduser() / FILE
        self._lock = threading.Lock()
        self._connection = _opened(self._path)

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. Calling it again does nothing."""
        with self._lock:
            self._connection.close()

    def add(self, entry: Entry) -> None:
        """Store an entry; it is on disk when this returns.

        Raises:
            RunError: The id is in use, or the database cannot be written.
        """
        values = [getattr(entry.summary, name) for name in _COLUMNS]
        record, extra = (json.dumps(finite(v), allow_nan=False) for v in (entry.record.to_dict(), entry.extra))
        places = ", ".join("?" for _ in (*values, record, extra))
        with self._changing() as db:
            try:
                db.execute(
                    f"INSERT INTO adaptations ({_SELECTED}, record, extra) VALUES ({places})", [*values, record, extra]
                )
            except sqlite3.IntegrityError as error:
                raise RunError(
                    f"a record with id {entry.summary.id!r} exists; give each adaptation a new id"
                ) from error

    def get(self, id: str, *, owner: str | None) -> Entry | None:
        """Return an entry; None where the owner has none of this id.

        Raises:
            KeyError, TypeError, AttributeError: Another version of mass wrote it.
        """
        where, values = _whose([("id = ?", id)], owner)
        with self._reading() as db:
            row = db.execute(f"SELECT {_SELECTED}, record, extra FROM adaptations WHERE {where}", values).fetchone()
        if row is None:
            return None
        *columns, record, extra = row
        return Entry(_summary(columns), Adaptation.from_dict(json.loads(record)), json.loads(extra))

    def list(
        self, filters: Filters | None = None, *, owner: str | None, limit: int = 50, cursor: str | None = None
    ) -> Page:
        """Return the newest entries that pass the filters, `limit` of them, or those that follow a page's cursor.

        Raises:
            ConfigError: The limit is not from 1 to `MOST`, or the cursor is none of ours.
        """
        if not 1 <= limit <= MOST:
            raise ConfigError(f"limit is {limit}; expected 1 to {MOST}; ask for the rest by the cursor")
        conditions, values = (filters or Filters()).conditions()
        if cursor is not None:
            conditions.append("(time, id) < (?, ?)")
            values += _position(cursor)
        if owner is not None:
            conditions.append("owner = ?")
            values.append(owner)
        where = " AND ".join(conditions) or "TRUE"
        # One more than asked for tells if there is a next page.
        query = f"SELECT {_SELECTED} FROM adaptations WHERE {where} ORDER BY time DESC, id DESC LIMIT ?"
        with self._reading() as db:
            rows = db.execute(query, [*values, limit + 1]).fetchall()
        found = tuple(_summary(row) for row in rows[:limit])
        return Page(found, f"{found[-1].time!r}:{found[-1].id}" if len(rows) > limit else None)

    def delete(self, id: str, *, owner: str | None) -> bool:
        """Delete an entry, its text overwritten on disk; return False where the owner has none of this id."""
        where, values = _whose([("id = ?", id)], owner)
        return self._erase(where, values) > 0

    def set_verdict(self, id: str, right: bool | None, *, owner: str | None) -> bool:
        """Keep a user's verdict on an answer, None to take it back; return False where the owner has no such entry."""
        where, values = _whose([("id = ?", id)], owner)
        with self._changing() as db:
            return db.execute(f'UPDATE adaptations SET "right" = ? WHERE {where}', [right, *values]).rowcount > 0

    def prune(self, keep_days: float, now: float | None = None) -> int:
        """Delete what is older than so many days, and return how many entries that were."""
        return self._erase("time < ?", [(clock.time() if now is None else now) - keep_days * 86400])

    def verdicts(self, *, owner: str | None) -> dict[bool | None, int]:
        """Return how many answers users found right (True) and wrong (False), and how many are not judged (None)."""
        where, values = _whose([], owner)
        query = f'SELECT "right", count(*) FROM adaptations WHERE {where} GROUP BY "right"'
        with self._reading() as db:
            counted = {None if right is None else bool(right): n for right, n in db.execute(query, values)}
        return {verdict: counted.get(verdict, 0) for verdict in (True, False, None)}

    def _erase(self, where: str, values: Sequence[Any]) -> int:
        with self._changing() as db:
            deleted = db.execute(f"DELETE FROM adaptations WHERE {where}", values).rowcount
        if deleted:
            # `secure_delete` overwrites the row in the database; the log of changes still has it until it is emptied.
            with self._reading() as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return deleted

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection, None, None]:
        with self._lock, _explained(self._path):
            yield self._connection

    @contextmanager
    def _changing(self) -> Generator[sqlite3.Connection, None, None]:
        """Make the block one transaction, which is rolled back if it fails."""
        with self._reading() as db, _transaction(db):
            yield db


@contextmanager
def _transaction(db: sqlite3.Connection) -> Generator[None, None, None]:
    # IMMEDIATE waits for other writers at once; a lock that is taken later cannot be waited for.
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


@contextmanager
def _explained(path: Path) -> Generator[None, None, None]:
    """Turn what SQLite raises into one line that names the file."""
    try:
        yield
    except sqlite3.ProgrammingError as error:
        raise RunError(f"{path} cannot be used any more ({error}); open the records anew") from error
    except (sqlite3.DatabaseError, OSError) as error:
        raise RunError(
            f"{path} cannot be used as a database of records ({error}); expected a folder on a local disk that can be "
            "written, with none or an undamaged one; name another with --records"
        ) from error


def _opened(path: Path) -> sqlite3.Connection:
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Records hold what users asked: nobody else on the machine may read them. SQLite's other files follow this one.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
        return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Check the database's version, or lay out an empty one."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    with _transaction(db):
        application, version = (db.execute(f"PRAGMA {of}").fetchone()[0] for of in ("application_id", "user_version"))
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (application, version, tables) == (0, 0, 0):
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
        elif application != APPLICATION:
            raise RunError(f"{path} is a database of something else; name another folder with --records")
        elif version != VERSION:
            raise RunError(
                f"{path} has records of version {version}; this version of mass reads {VERSION}; use the version of "
                "mass that wrote them, or name another folder with --records"
            )


def _whose(conditions: Sequence[tuple[str, Any]], owner: str | None) -> tuple[str, list[Any]]:
    """Return SQL that holds for what passes the conditions and belongs to the owner, and its values."""
    found = [*conditions, *([] if owner is None else [("owner = ?", owner)])]
    return " AND ".join(condition for condition, _ in found) or "TRUE", [value for _, value in found]


def _summary(columns: Sequence[Any]) -> Summary:
    values = dict[str, Any](zip(_COLUMNS, columns, strict=True))
    values["adapted"] = bool(values["adapted"])
    values["right"] = None if values["right"] is None else bool(values["right"])
    return Summary(**values)


def _position(cursor: str) -> list[Any]:
    time, _, id = cursor.partition(":")
    try:
        return [float(time), id]
    except ValueError:
        raise ConfigError(f"cursor is {cursor[:40]!r}; expected one that a page of the list has given") from None
