"""The record of a migration, on its target: what is moved, how far each session is, who works on it.

It is for people, for the schedule, and for who goes on. What is true of a session is on the two servers, beside the
session itself, and written in one step with it: a record that lags costs a question, never a session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

import msgspec
from msgspec import Struct

from domain.errors import Conflict, NotFound
from domain.log import SessionLog
from projections.store import ProjectionStore
from workers.migration.ends import Ends

#: States of a migration. From those in ENDED nothing leads on.
PLANNED: Final = "planned"
COPYING: Final = "copying"
COPIED: Final = "copied"
CUTTING: Final = "cutting over"
MOVED: Final = "moved"
ROLLING_BACK: Final = "rolling back"
ROLLED_BACK: Final = "rolled back"
SYNCING: Final = "syncing"
IN_SYNC: Final = "in sync"
FAILING_OVER: Final = "failing over"
#: The standby takes appends, and the old side was not closed yet.
UNFENCED: Final = "unfenced"
FAILED_OVER: Final = "failed over"
CANCELLED: Final = "cancelled"
RETIRED: Final = "retired"
ENDED: Final = frozenset({ROLLED_BACK, CANCELLED, RETIRED, FAILED_OVER})
#: States in which somebody should be at work.
AT_WORK: Final = frozenset({COPYING, CUTTING, ROLLING_BACK, SYNCING, FAILING_OVER})
#: How long a migration stays with a process that gives no sign of life, in ms.
LEASE_TTL_MS: Final = 3_000
#: What stands before a partition of the source in the field that says how far its feed is gone through.
_AT: Final = "at:"
#: How many sessions' records are read at a time.
PAGE: Final = 1000


class Migration(Struct, frozen=True):
    """One migration. `source` and `target` are places; times are ms of the target's clock, 0 for not yet.

    `selection` is empty for all sessions, or holds `sessions` (ids) or `filter`.
    """

    id: str
    kind: str
    state: str
    source: str
    target: str
    source_store: str
    selection: dict[str, Any]
    who: str
    created: int
    began: int = 0
    beat: int = 0
    ended: int = 0
    proof: str = ""
    #: Of so many sessions the cursors of durable subscriptions have not arrived with them.
    cursors_waiting: int = 0
    error: str | None = None
    holder: str | None = None

    @property
    def may_hold_sessions(self) -> bool:
        """Sessions may be closed on both sides until somebody goes on."""
        return self.state in (CUTTING, ROLLING_BACK)

    @property
    def is_stuck(self) -> bool:
        """Somebody should be at work, and nobody is."""
        return self.state in AT_WORK and self.holder is None


class Move(Struct, frozen=True, omit_defaults=True):
    """What became of one session: `begun`, `copied`, `sealing`, `moved`, `elsewhere` (it was moved before), `failed`,
    `back`; of one of a standby: `synced`, `conflict` (from `seq` on), `kept` (the standby's counts), `opened` (by a
    failover).

    `seq` and `digest` are where its copy stands, or stood when it was opened; `down_ms` is how long nobody could append
    to it.
    """

    state: str
    seq: int = 0
    digest: str = ""
    verified: bool = False
    down_ms: float | None = None
    proof: str | None = None
    error: str | None = None


class Migrations:
    """All migrations to one store."""

    def __init__(self, store: ProjectionStore) -> None:
        self._client = store.client
        self._keyspace = store.keyspace
        self._store = store

    def create(self, ends: Ends, kind: str, selection: dict[str, Any], who: str) -> Migration:
        """Writes a new one down, between these ends, of which the target is this store."""
        now, source = self._store.server_ms(), ends.source.place
        migration = Migration(
            uuid4().hex[:12], kind, PLANNED, str(source), str(ends.target.place), source.store, selection, who, now
        )
        pipe = self._client.pipeline(transaction=True)
        pipe.hset(self._keyspace.migration(migration.id), "record", msgspec.json.encode(migration))
        pipe.zadd(self._keyspace.migrations, {migration.id: now})
        pipe.execute()
        return migration

    def get(self, id: str) -> Migration:
        """One migration. Raises NotFound (MIGRATION_UNKNOWN)."""
        pipe = self._client.pipeline(transaction=False)
        pipe.hgetall(self._keyspace.migration(id))
        pipe.hmget(self._keyspace.task_owner(id), "worker", "deadline")
        fields, (worker, deadline) = pipe.execute()
        if b"record" not in fields:
            raise NotFound("MIGRATION_UNKNOWN", f"the target knows no migration {id}", task=id)
        record = msgspec.json.decode(fields.pop(b"record"), type=dict)
        for name, value in fields.items():
            record[name.decode()] = msgspec.json.decode(value)
        is_held = worker is not None and int(deadline or 0) > self._store.server_ms()
        return msgspec.convert(record | {"holder": worker.decode() if is_held else None}, Migration)

    @staticmethod
    def source_of(log: SessionLog, id: str) -> str:
        """The place a migration's sessions come from. Raises NotFound (MIGRATION_UNKNOWN)."""
        stored: Any = log.client.hget(log.keyspace.migration(id), "record")
        if stored is None:
            raise NotFound("MIGRATION_UNKNOWN", f"the target knows no migration {id}", task=id)
        return str(msgspec.json.decode(stored, type=Migration).source)

    def all(self) -> list[Migration]:
        """All of them, the newest first."""
        return [self.get(id.decode()) for id in self._client.zrange(self._keyspace.migrations, 0, -1, desc=True)]

    def note(self, id: str, **fields: Any) -> None:
        """Writes fields of a migration, each by itself."""
        told = {name: msgspec.json.encode(value) for name, value in fields.items()}
        self._client.hset(self._keyspace.migration(id), mapping=told)

    def reached(self, id: str, partition: int, position: int) -> None:
        """Notes up to where the feed of a source's partition was gone through."""
        self.note(id, **{f"{_AT}{partition}": position})

    def positions(self, id: str) -> dict[int, int]:
        """Up to where the feeds of the source's partitions were gone through."""
        fields = self._client.hgetall(self._keyspace.migration(id))
        found = ((name.decode(), value) for name, value in fields.items())
        return {int(name.removeprefix(_AT)): int(value) for name, value in found if name.startswith(_AT)}

    # -- who works on it ---------------------------------------------------------------------------------------------

    def claim(self, id: str, worker: str) -> str:
        """Takes the lease of a migration; returns its token. Raises Conflict (MIGRATION_BUSY: `facts` hold left_ms)."""
        owner = self._keyspace.task_owner(id)
        reply = self._client.fcall("muster_claim_1", 1, owner, worker, uuid4().hex[:16], LEASE_TTL_MS, "0")
        if isinstance(reply, bytes):
            return reply.decode()
        holder, left_ms = reply
        raise Conflict(
            "MIGRATION_BUSY", f"{holder.decode()} works on migration {id}", holder=holder.decode(), left_ms=int(left_ms)
        )

    def renew(self, id: str, token: str) -> bool:
        """Keeps the lease, and notes a sign of life; False if the lease was lost."""
        if not self._client.fcall("muster_renew_1", 1, self._keyspace.task_owner(id), token, LEASE_TTL_MS):
            return False
        self.note(id, beat=self._store.server_ms())
        return True

    def release(self, id: str, token: str) -> None:
        """Gives the lease back."""
        self._client.fcall("muster_release_1", 1, self._keyspace.task_owner(id), token)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def put(self, id: str, moves: Mapping[str, Move]) -> None:
        """Writes what became of sessions."""
        if moves:
            told = {session: msgspec.json.encode(move) for session, move in moves.items()}
            self._client.hset(self._keyspace.moves(id), mapping=told)

    def of(self, id: str, sessions: Sequence[str]) -> list[Move | None]:
        """What became of these sessions."""
        stored = self._client.hmget(self._keyspace.moves(id), list(sessions)) if sessions else []
        return [None if one is None else msgspec.json.decode(one, type=Move) for one in stored]

    def moves(self, id: str) -> Iterator[tuple[str, Move]]:
        """What became of every session that was begun with, in no order."""
        for session, stored in self._client.hscan_iter(self._keyspace.moves(id), count=PAGE):
            yield session.decode(), msgspec.json.decode(stored, type=Move)
