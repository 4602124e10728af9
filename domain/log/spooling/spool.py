"""The spool: a SQLite file of commits that wait for the server, in the order in which they were taken.

What is in it is on the disk (WAL, synchronous=FULL) before its receipt is given. Several processes may share one: each
change is a transaction, and which of them sends a commit first does not matter, because a commit is *marked* before it
is sent for the first time, with what was known of its session then. Whoever finds it marked sends it as a repeat, which
the server recognises. A commit that the server refuses is *held*, with the reason; it is never dropped, and what comes
after it in its session waits behind it.

Not for a network file system: SQLite's WAL needs shared memory between its processes.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Final

import msgspec
from msgspec import Struct

from domain.errors import Damaged, Misconfigured, MusterError, Unavailable
from domain.log.contract import AppendRequest, Position
from domain.log.grouping import ThreadGrouping
from domain.log.store import Identity

#: How many bytes of commits a spool takes, unless told otherwise.
DEFAULT_MAX_BYTES: Final = 256 * 1024 * 1024
#: What a commit takes up beside its body and its ids, about, in bytes.
ROW_BYTES: Final = 256
#: A page, of which the sessions are sent side by side, holds at most so many commits and bytes.
PAGE_COMMITS: Final = 512
PAGE_BYTES: Final = 4 * 1024 * 1024
#: How long to wait for another process that writes to the file, in seconds.
BUSY_S: Final = 30.0
_VERSION: Final = 1
_SCHEMA: Final = f"""
    CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS commits (
        number INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order in which they were taken; never used twice
        session TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,       -- this host's clock
        epoch INTEGER NOT NULL,       -- the store's, as it was known
        dedupe INTEGER NOT NULL,      -- 1: the session's ids are read first, and known events left out
        marked INTEGER NOT NULL,      -- 1: it may have been sent
        request BLOB NOT NULL,        -- AppendRequest, MessagePack
        code TEXT, cause TEXT         -- why it is held
    );
    CREATE INDEX IF NOT EXISTS of_session ON commits (session, number);
    CREATE INDEX IF NOT EXISTS held ON commits (session) WHERE code IS NOT NULL;
    INSERT OR IGNORE INTO about VALUES ('bytes', 0), ('version', {_VERSION});
"""

#: Connections that a process inherited from its parent. SQLite forbids to use or to close them in the child.
_INHERITED: list[Any] = []


class Entry(Struct, frozen=True):
    """A commit on its way into the spool. `marked`: it may have been sent already. `dedupe`: as `log.append`'s."""

    request: AppendRequest
    epoch: int
    dedupe: bool = False
    marked: bool = False


class Spooled(Struct, frozen=True):
    """A commit in the spool: its number, what is sent, since when it waits (this host's clock), and why it is held."""

    number: int
    request: AppendRequest
    epoch: int
    dedupe: bool
    marked: bool
    at_ms: int
    code: str | None
    cause: str | None


class SpoolTotals(Struct, frozen=True):
    """What a spool holds: commits (those of held sessions included), sessions, sessions that are held, and bytes."""

    commits: int
    sessions: int
    held: int
    bytes: int
    max_bytes: int


class Spool:
    """The file. Safe to share between threads; a forked child opens it anew.

    Raises Misconfigured (SPOOL_DIFFERS), Unavailable (SPOOL_FAILED, SPOOL_FULL), Damaged (SPOOL_DAMAGED).
    """

    def __init__(self, path: str | Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._lock = Lock()
        self._writes: ThreadGrouping[Entry] = ThreadGrouping(self._write)
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        with self._opened():
            pass

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    # -- whose it is -------------------------------------------------------------------------------------------------

    def identity(self, environment: str, namespace: str) -> Identity | None:
        """The store whose commits this spool takes, as it was when it was last met; None if it never was.

        Raises Misconfigured (SPOOL_DIFFERS) if it belongs to another environment or namespace.
        """
        with self._opened() as db:
            about = dict(db.execute("SELECT name, value FROM about"))
        if "store" not in about:
            return None
        if (about["environment"], about["namespace"]) != (environment, namespace):
            whose = f"environment {about['environment']!r}, namespace {about['namespace']!r}"
            raise Misconfigured("SPOOL_DIFFERS", f"the spool {self.path} belongs to {whose}")
        return Identity(about["store"], about["epoch"], about["partitions"])

    def belongs_to(self, environment: str, namespace: str, identity: Identity) -> None:
        """Notes whose commits it takes. Raises Misconfigured (SPOOL_DIFFERS) while it holds those of another store."""
        known = {
            "environment": environment,
            "namespace": namespace,
            "store": identity.store,
            "epoch": identity.epoch,
            "partitions": identity.partitions,
        }
        with self._transaction() as db:
            about = dict(db.execute("SELECT name, value FROM about"))
            is_other = any(
                about.get(name, known[name]) != known[name] for name in ("environment", "namespace", "store")
            )
            if is_other and db.execute("SELECT 1 FROM commits LIMIT 1").fetchone():
                raise Misconfigured(
                    "SPOOL_DIFFERS",
                    f"the spool {self.path} holds commits for store {about['store']} of environment "
                    f"{about['environment']!r}, namespace {about['namespace']!r}; this is store {identity.store}",
                )
            db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", known.items())

    # -- what comes in -----------------------------------------------------------------------------------------------

    def first(self, session: str) -> Spooled | None:
        """The oldest commit of a session; None if nothing of it is here. Where it is held, all of its session waits."""
        with self._opened() as db:
            row = db.execute(f"{_COLUMNS} WHERE session = ? ORDER BY number LIMIT 1", (session,)).fetchone()
        return None if row is None else _spooled(row)

    def add(self, entries: list[Entry]) -> list[MusterError | None]:
        """Takes commits, on the disk when this returns; None for each that was taken, else why it was not.

        Those of several threads are written together.
        """
        return self._writes.exchange(entries)

    def _write(self, entries: Sequence[Entry]) -> list[MusterError | None]:
        answers: list[MusterError | None] = []
        with self._transaction() as db:
            ((held,),) = db.execute("SELECT value FROM about WHERE name = 'bytes'")
            for entry in entries:
                packed = msgspec.msgpack.encode(entry.request)
                size = len(packed) + ROW_BYTES
                if held + size > self.max_bytes:
                    answers.append(self._full(held))
                    continue
                held += size
                db.execute(
                    "INSERT INTO commits (session, bytes, at_ms, epoch, dedupe, marked, request)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        entry.request.session,
                        size,
                        int(time.time() * 1000),
                        entry.epoch,
                        entry.dedupe,
                        entry.marked,
                        packed,
                    ),
                )
                answers.append(None)
            db.execute("UPDATE about SET value = ? WHERE name = 'bytes'", (held,))
        return answers

    def _full(self, held: int) -> Unavailable:
        return Unavailable(
            "SPOOL_FULL",
            f"the spool {self.path} holds {held} of {self.max_bytes} bytes, and the server is away",
            path=str(self.path),
            held_bytes=held,
            max_bytes=self.max_bytes,
        )

    # -- what goes out -----------------------------------------------------------------------------------------------

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Whether this process is the one that sends for the time of the block: one is enough, and two do no harm."""
        claim = os.open(f"{self.path}-sending", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.lockf(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a forked child does not inherit it
            except OSError:
                yield False
            else:
                yield True
        finally:
            os.close(claim)

    def page(self, epoch: int) -> list[Spooled]:
        """The oldest commits of sessions of which none is held.

        One that was held because the store lost what its producer knew counts as not held once that loss is accepted,
        which raised the store's epoch.
        """
        found: list[Spooled] = []
        size = 0
        query = f"{_COLUMNS} WHERE {_UNHELD} ORDER BY number LIMIT {PAGE_COMMITS}"
        with self._opened() as db:
            for row in db.execute(query, {"epoch": epoch}):
                one = _spooled(row)
                size += len(one.request.body)
                if found and size > PAGE_BYTES:
                    break
                found.append(one)
        return found

    def mark(self, known: dict[int, Position | None]) -> set[int]:
        """Marks commits, which have these numbers, with what is known of their sessions now; they may be sent then.

        Returns those that this call marked. One that is missing was marked before, and keeps what was known then.
        """
        marked: set[int] = set()
        with self._transaction() as db:
            for number, position in known.items():
                row = db.execute("SELECT request FROM commits WHERE number = ? AND marked = 0", (number,)).fetchone()
                if row is None:
                    continue
                request = msgspec.structs.replace(_decoded(row[0]), known=position)
                packed = msgspec.msgpack.encode(request)
                db.execute("UPDATE commits SET marked = 1, request = ? WHERE number = ?", (packed, number))
                marked.add(number)
        return marked

    def settle(self, arrived: Iterable[int], refused: dict[int, MusterError], epoch: int) -> None:
        """Lets go of commits that arrived, and holds those that were refused at an epoch of the store."""
        with self._transaction() as db:
            _delete(db, arrived)
            for number, error in refused.items():
                db.execute(
                    "UPDATE commits SET code = ?, cause = ?, epoch = ? WHERE number = ?",
                    (error.code, error.cause, epoch, number),
                )

    # -- what people do ----------------------------------------------------------------------------------------------

    def each(self, session: str | None = None, *, held: bool = False) -> Iterator[Spooled]:
        """All commits, in order; of one session, or of held ones alone (what waits behind one included)."""
        query, after = _COLUMNS + " WHERE number > ?", 0
        if session is not None:
            query += " AND session = ?"
        if held:
            query += f" AND {_HELD}"
        query += " ORDER BY number LIMIT 256"
        while True:
            with self._opened() as db:
                rows = db.execute(query, (after,) if session is None else (after, session)).fetchall()
            for row in rows:
                yield _spooled(row)
            if not rows:
                return
            after = rows[-1][0]

    def release(self) -> int:
        """Has held commits sent once more; returns how many these are."""
        with self._transaction() as db:
            return db.execute("UPDATE commits SET code = NULL, cause = NULL WHERE code IS NOT NULL").rowcount

    def remove(self, numbers: Iterable[int]) -> None:
        """Forgets commits, because they are kept elsewhere."""
        with self._transaction() as db:
            _delete(db, numbers)

    def totals(self) -> SpoolTotals:
        """What it holds."""
        with self._opened() as db:
            commits, sessions = db.execute("SELECT COUNT(*), COUNT(DISTINCT session) FROM commits").fetchone()
            ((held,),) = db.execute("SELECT COUNT(DISTINCT session) FROM commits WHERE code IS NOT NULL")
            ((size,),) = db.execute("SELECT value FROM about WHERE name = 'bytes'")
        return SpoolTotals(commits, sessions, held, size, self.max_bytes)

    def is_empty(self) -> bool:
        """Whether nothing is there to be sent; what is held, or waits behind it, does not count."""
        with self._opened() as db:
            return db.execute(f"SELECT 1 FROM commits WHERE {_UNHELD} LIMIT 1", {"epoch": 0}).fetchone() is None

    # -- the connection ----------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it is on the disk when the block ends, or none."""
        with self._opened() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time, and SQLite's errors as ours."""
        if self._process != os.getpid():
            self._begin()
        try:
            with self._lock:
                if self._connection is None:
                    self._connection = self._connect()
                yield self._connection
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from error

    def _begin(self) -> None:
        """Begins anew in a process that did not open it: the lock and the connection are the parent's."""
        if self._connection is not None:
            _INHERITED.append(self._connection)
        self._lock, self._connection, self._process = Lock(), None, os.getpid()

    def _connect(self) -> sqlite3.Connection:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # it holds what agents say
        os.close(descriptor)
        db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.executescript(_SCHEMA)
            ((version,),) = db.execute("SELECT value FROM about WHERE name = 'version'")
        except BaseException:
            db.close()
            raise
        if version != _VERSION:
            db.close()
            raise Misconfigured("SPOOL_DIFFERS", f"the spool {self.path} has version {version}; this is {_VERSION}")
        return db

    def _failed(self, error: sqlite3.Error | OSError) -> MusterError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return Damaged("SPOOL_DAMAGED", f"the spool {self.path}: {error}", path=str(self.path))
        return Unavailable(
            "SPOOL_FULL" if code == sqlite3.SQLITE_FULL else "SPOOL_FAILED",
            f"the spool {self.path}: {error}",
            path=str(self.path),
        )


_COLUMNS: Final = "SELECT number, request, epoch, dedupe, marked, at_ms, code, cause FROM commits"
_HELD: Final = "session IN (SELECT session FROM commits WHERE code IS NOT NULL)"
_UNHELD: Final = """session NOT IN (
    SELECT session FROM commits WHERE code IS NOT NULL AND NOT (code IN ('TAIL_LOST', 'FORK') AND epoch < :epoch)
)"""


def _decoded(packed: bytes) -> AppendRequest:
    return msgspec.msgpack.decode(packed, type=AppendRequest)


def _spooled(row: Any) -> Spooled:
    number, packed, epoch, dedupe, marked, at_ms, code, cause = row
    return Spooled(number, _decoded(packed), epoch, bool(dedupe), bool(marked), at_ms, code, cause)


def _delete(db: sqlite3.Connection, numbers: Iterable[int]) -> None:
    for number in numbers:
        row = db.execute("DELETE FROM commits WHERE number = ? RETURNING bytes", (number,)).fetchone()
        if row is not None:
            db.execute("UPDATE about SET value = value - ? WHERE name = 'bytes'", row)
