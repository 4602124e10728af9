"""Restoring a backup: its commits are written again as they were appended, with their seqs, times and digests.

Theory of operation. A store that is being restored has no identity yet: nobody can open it, append to it, or take it
for whole. Sessions are copied commit by commit, each digest computed again by the server; one that is there already is
gone on with where it stands, so an interrupted restore is finished by the same command. In the end every partition
gets its identity and the running total of its events, and the store is opened. Views are not restored: workers build
them.

A backup that is restored under its own names is the same store again: producers go on with what they hold, and whoever
has receipts for commits after the cut is told that they are lost. Under other names it is a new store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import redis
from msgspec import Struct, structs

from domain.codec import Commit, Limits, genesis
from domain.errors import Conflict, Damaged
from domain.invariants import gate_of
from domain.log.connection import connection_error
from domain.log.keys import Keyspace
from domain.log.protocol import CALL_BYTES, CALL_COMMITS
from domain.log.store import check_version, create_commands
from domain.log.subscribing.delivery import Place
from domain.session import OPEN_GATE
from workers.backup import audit, reading
from workers.backup.folder import Manifest, chain_of
from workers.backup.reading import Kept
from workers.backup.subscriptions import making, marking, placing
from workers.pacing import Pace

#: How many sessions are copied side by side.
PAGE: Final = 64
_FLAGS: Final = {"any": "", "strict": "s", "leased": "l"}


class Restored(Struct):
    """What a restore wrote, and the store it made."""

    backup: str
    store: str
    epoch: int
    partitions: int
    sessions: int = 0
    events: int = 0
    quarantined: int = 0
    subscriptions: int = 0
    audited: int = 0


class Restoring:
    """A backup on its way into a store that is not there yet.

    `until_ms`: only what was appended until then (server time). `partitions`: as many as the backup's without it.
    """

    def __init__(
        self,
        client: Any,
        folder: Path,
        *,
        environment: str,
        namespace: str,
        partitions: int | None,
        until_ms: int | None,
        pace: Pace,
    ) -> None:
        self._client = client
        self._chain: Sequence[tuple[Path, Manifest]] = chain_of(folder)
        self._manifest = self._chain[-1][1]
        self._keyspace = Keyspace(environment, namespace, partitions or self._manifest.partitions)
        self._until_ms = until_ms
        self._pace = pace
        self._name = self._manifest.id if until_ms is None else f"{self._manifest.id} until {until_ms}"

    def run(self) -> Restored:
        """Restores, or goes on with it. Raises Conflict (STORE_EXISTS, RESTORE_DIFFERS), Damaged (BACKUP_DAMAGED)."""
        if problems := reading.verify(self._chain[-1][0], self._pace):
            raise Damaged(
                "BACKUP_DAMAGED", f"{problems[0].path}: {problems[0].cause} ({len(problems)} problems in all)"
            )
        store = self._claim()
        done = Restored(self._manifest.id, store, self._manifest.epoch, self._keyspace.count)
        finished = self._finished(store)
        totals = [0] * self._keyspace.count
        last_ms = [0] * self._keyspace.count
        for page in self._pages():
            for kept in page:
                partition = self._keyspace.partition_of(kept.row.session)
                totals[partition] += kept.row.seq
                last_ms[partition] = max(last_ms[partition], kept.commits[-1].at_ms)
                done.sessions, done.events = done.sessions + 1, done.events + kept.row.seq
                done.quarantined += kept.row.quarantined is not None
            self._copy(store, [kept for kept in page if self._keyspace.partition_of(kept.row.session) not in finished])
            self._pace.took(sum(kept.row.seq for kept in page))
        if self._manifest.audited is not None:
            found = audit.entries(self._chain[-1][0])
            done.audited = audit.restore(self._client, self._keyspace, found, self._until_ms)
        for partition in sorted(set(range(self._keyspace.count)) - finished):
            self._open_partition(store, partition, Place(totals[partition], last_ms[partition]))
        self._open_store()
        done.subscriptions = len(self._manifest.subscriptions)
        return done

    # -- the store ---------------------------------------------------------------------------------------------------

    def _claim(self) -> str:
        """Takes the place of a store that is not there; returns the id that it is to have."""
        check_version(self._client.info("server"))
        keyspace, meta = self._keyspace, self._keyspace.store_meta
        fields = self._client.hgetall(meta)
        if fields and not fields.get(b"restoring"):
            raise Conflict("STORE_EXISTS", f"there is a store {fields.get(b'store', b'?').decode()} under these names")
        if not fields and any(self._client.exists(keys.meta) for keys in keyspace.partitions):
            raise Conflict("STORE_EXISTS", "there are partitions of a store under these names")
        own = (keyspace.environment, keyspace.namespace) == (self._manifest.environment, self._manifest.namespace)
        store = self._manifest.store if own else uuid4().hex
        self._client.execute_command(*create_commands(keyspace, store)[0][0])
        pipe = self._client.pipeline(transaction=True)
        for name, value in (("restoring", self._name), ("store", store), ("partitions", str(keyspace.count))):
            pipe.hsetnx(meta, name, value)
        pipe.hmget(meta, "restoring", "store", "partitions")
        name, found, partitions = (value.decode() for value in pipe.execute()[-1])
        if (name, int(partitions)) != (self._name, keyspace.count):
            raise Conflict("RESTORE_DIFFERS", f"backup {name} is being restored here, into {partitions} partitions")
        return str(found)

    def _finished(self, store: str) -> set[int]:
        """The partitions that are done; the others are marked as being restored."""
        finished = set()
        for partition, keys in enumerate(self._keyspace.partitions):
            if self._client.hget(keys.meta, "store") is not None:
                finished.add(partition)
            else:
                self._client.hset(keys.meta, "restoring", store)
        return finished

    def _open_partition(self, store: str, partition: int, end: Place) -> None:
        keys, manifest = self._keyspace.partitions[partition], self._manifest
        limits = Limits(commit_events=manifest.commit_events, commit_bytes=manifest.commit_bytes)
        pipe = self._client.pipeline(transaction=True)
        pipe.execute_command(*create_commands(self._keyspace, store, limits, epoch=manifest.epoch)[1][partition])
        pipe.hset(keys.meta, "total", end.total)
        pipe.hset(keys.meta, "restoring", "")
        for command in placing(manifest, self._keyspace, partition, end):
            pipe.execute_command(*command)
        pipe.execute()

    def _open_store(self) -> None:
        pipe = self._client.pipeline(transaction=True)
        for command in create_commands(self._keyspace, "", epoch=self._manifest.epoch)[2]:
            pipe.execute_command(*command)
        for command in making(self._manifest, self._keyspace):
            pipe.execute_command(*command)
        pipe.hset(self._keyspace.store_meta, "restoring", "")
        pipe.execute()

    # -- sessions ----------------------------------------------------------------------------------------------------

    def _pages(self) -> Iterator[list[Kept]]:
        found = (
            wanted
            for partition in range(self._manifest.partitions)
            for kept in reading.sessions(self._chain, partition)
            if (wanted := self._wanted(kept)).commits
        )
        while page := list(islice(found, PAGE)):
            yield page

    def _wanted(self, kept: Kept) -> Kept:
        """What is to be restored of a session."""
        row = kept.row
        if row.quarantined is None and row.damaged is not None:
            row = structs.replace(row, quarantined={"code": "LOG_ALTERED", "first_bad_seq": row.damaged})
        if self._until_ms is None or not kept.commits or kept.commits[-1].at_ms <= self._until_ms:
            return Kept(row, kept.commits)
        commits = [commit for commit in kept.commits if commit.at_ms <= self._until_ms]
        gate = OPEN_GATE
        for commit in commits:
            gate = gate_of(gate, commit)
        last = commits[-1] if commits else None
        seq, digest = (last.last_seq, last.digest) if last is not None else (0, genesis(row.session))
        return Kept(structs.replace(row, seq=seq, digest=digest, gate=gate, quarantined=None), commits)

    def _copy(self, store: str, page: Sequence[Kept]) -> None:
        """Copies sessions, each from where it stands."""
        replies = self._send([self._call(store, kept, 0) for kept in page])
        for kept, reply in zip(page, replies, strict=True):
            while (place := self._place(kept, reply)) < len(kept.commits):
                (reply,) = self._send([self._call(store, kept, place)])
        pipe = self._client.pipeline(transaction=False)
        for kept in page:
            for command in marking(self._manifest, self._keyspace, kept.row, kept.commits):
                pipe.execute_command(*command)
            row = kept.row
            keys = self._keyspace.of(row.session)
            if row.policy != "any":
                pipe.hset(keys.hold(row.session), "policy", row.policy)
            if row.quarantined is not None:
                pipe.hset(keys.hold(row.session), mapping=row.quarantined)
            if row.moved is not None:
                pipe.hset(keys.hold(row.session), mapping=row.moved)
            if row.skips is not None:
                pipe.hset(keys.skips, row.session, row.skips)
        pipe.execute()

    def _call(self, store: str, kept: Kept, place: int) -> list[Any]:
        """The call that copies the commits of a session from a place on, as many as fit."""
        row, commits = kept.row, kept.commits
        before = (commits[place - 1].last_seq, commits[place - 1].digest) if place else (0, genesis(row.session))
        size, chosen = 0, list[Commit]()
        for commit in commits[place : place + CALL_COMMITS]:
            size += len(commit.body)
            if chosen and size > CALL_BYTES:
                break
            chosen.append(commit)
        flags = _FLAGS[row.policy] + ("q" if row.quarantined is not None else "")
        flags += "m" if row.moved is not None else ""
        keys = self._keyspace.of(row.session)
        names = (keys.meta, keys.sessions, keys.log(row.session), keys.head(row.session))
        copied = [
            part
            for one in chosen
            for part in (one.last_seq - one.first_seq + 1, one.at_ms, one.digest, one.body, one.traceparent or "")
        ]
        about = (store, row.session, *before, row.gate, flags or "-")
        return ["FCALL", "muster_copy_1", len(names), *names, *about, *copied]

    def _send(self, calls: Sequence[list[Any]]) -> list[Any]:
        pipe = self._client.pipeline(transaction=False)
        for call in calls:
            pipe.execute_command(*call)
        replies: list[Any] = pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, redis.RedisError):
                raise connection_error(reply)
        return replies

    def _place(self, kept: Kept, reply: Any) -> int:
        """From which commit on a session is to be copied, by the reply to the last call."""
        word, seq = reply[0], int(reply[1])
        if word == b"CHAIN":
            raise Damaged("BACKUP_DAMAGED", f"the commit at seq {seq} of session {kept.row.session} does not fit")
        for place, commit in enumerate(kept.commits, 1):
            if commit.last_seq == seq and (word == b"COPIED" or commit.digest == reply[2].decode()):
                return place
        raise Conflict("RESTORE_DIFFERS", f"session {kept.row.session} stands here at seq {seq}, with other commits")
