"""Making a backup while appends go on.

Theory of operation. Times in a partition grow in the order of its feed, so "all that was appended until T" is a cut,
once the server's clock has passed T: nothing that comes later can lie before it. Each partition has its own T, taken
when its turn comes. Sessions are read in the order of the registry; of one that stands where the base left it nothing
is read. A backup that is interrupted keeps the partitions that are done, and the same command goes on with the next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec
from msgspec import structs

from domain.codec import Commit, genesis
from domain.errors import Conflict
from domain.invariants import gate_of, is_chained, is_dense
from domain.log import SessionLog
from domain.log.contract import Head
from domain.log.lines import encode_line
from domain.session import OPEN_GATE
from projections.store import ProjectionStore
from workers.backup import audit
from workers.backup.folder import (
    SUMS,
    Cut,
    Manifest,
    Row,
    chain_of,
    finish,
    lines_name,
    packed,
    rows,
    rows_name,
    write_whole,
)
from workers.backup.subscriptions import subscribed
from workers.pacing import Pace

#: The manifest of a backup under way, as far as it is known.
BEGUN: Final = "begun.json"


class Creating:
    """One backup of a store into a folder."""

    def __init__(self, log: SessionLog, folder: Path, *, base: Path | None, pace: Pace) -> None:
        self._log = log
        self._store = ProjectionStore(log.client, log.keyspace)
        self._folder = folder
        self._base = base
        self._pace = pace

    def run(self) -> Manifest:
        """Makes the backup, or goes on with it. Raises Conflict (BACKUP_EXISTS, BACKUP_DIFFERS)."""
        manifest = self._begin()
        done = {cut.partition for cut in manifest.cuts}
        for partition in range(self._log.keyspace.count):
            if partition not in done:
                manifest = structs.replace(manifest, cuts=[*manifest.cuts, self._partition(partition)])
                self._note(manifest)
        audited = audit.back_up(self._log.client, self._log.keyspace, self._folder)
        subscriptions = list(subscribed(self._log))
        manifest = structs.replace(manifest, ended_at=_now(), subscriptions=subscriptions, audited=audited)
        finish(self._folder, manifest)
        (self._folder / BEGUN).unlink()
        return manifest

    def _begin(self) -> Manifest:
        if (self._folder / SUMS).exists():
            raise Conflict("BACKUP_EXISTS", f"{self._folder} holds a finished backup")
        identity = self._log.identity
        base = None
        if self._base is not None:
            found = chain_of(self._base)[-1][1]
            self._check_same_store(found, self._base)
            base = (found.id, os.path.relpath(self._base, self._folder))
        begun = self._folder / BEGUN
        if begun.exists():
            manifest = msgspec.json.decode(begun.read_bytes(), type=Manifest)
            self._check_same_store(manifest, self._folder)
            if manifest.base != base:
                raise Conflict("BACKUP_DIFFERS", f"the backup begun in {self._folder} goes on from {manifest.base}")
            return manifest
        if self._folder.exists() and any(self._folder.iterdir()):
            raise Conflict("BACKUP_EXISTS", f"{self._folder} is not empty, and holds no backup that was begun")
        self._folder.mkdir(parents=True, exist_ok=True)
        keyspace = self._log.keyspace
        limits: Any = self._log.client.hmget(keyspace.partitions[0].meta, "max_events", "max_bytes")
        manifest = Manifest(
            uuid4().hex, identity.store, identity.epoch, keyspace.environment, keyspace.namespace, keyspace.count,
            int(limits[0] or 0), int(limits[1] or 0), _now(), "", base, [],
        )  # fmt: skip
        self._note(manifest)
        return manifest

    def _check_same_store(self, manifest: Manifest, folder: Path) -> None:
        identity = self._log.identity
        if (manifest.store, manifest.partitions) != (identity.store, identity.partitions):
            raise Conflict("BACKUP_DIFFERS", f"{folder} is of store {manifest.store}, not of {identity.store}")

    def _note(self, manifest: Manifest) -> None:
        write_whole(self._folder / BEGUN, msgspec.json.encode(manifest))

    # -- a partition -------------------------------------------------------------------------------------------------

    def _partition(self, partition: int) -> Cut:
        at_ms = self._cut(partition)
        events = sessions = commits = damaged = 0
        with (
            packed(self._folder / rows_name(partition)) as row_to,
            packed(self._folder / lines_name(partition)) as line_to,
        ):
            for row, found in self._sessions(partition, at_ms):
                for commit in found:
                    line_to(encode_line(commit))
                row_to(msgspec.json.encode(row))
                sessions, events, commits = sessions + 1, events + row.seq, commits + len(found)
                damaged += row.damaged is not None
                self._pace.took(sum(commit.last_seq - commit.first_seq + 1 for commit in found))
        return Cut(partition, at_ms, events, sessions, commits, damaged)

    def _cut(self, partition: int) -> int:
        """The time until which the partition is backed up; returns when nothing can be written before it any more."""
        pipe = self._log.client.pipeline(transaction=True)
        pipe.time()
        pipe.hget(self._store.keys(partition).meta, "at")
        (seconds, micros), at = pipe.execute()
        cut = max(int(seconds) * 1000 + int(micros) // 1000, int(at or 0))
        # Where the clock was set back, the next commit's time is counted on from the last one's.
        while cut > int(at or 0) and self._store.server_ms() <= cut:
            time.sleep(0.001)
        return cut

    def _sessions(self, partition: int, at_ms: int) -> Iterator[tuple[Row, list[Commit]]]:
        """Each session that had a commit by then: where it stood, and the commits since the base."""
        known = self._known(partition)
        for page in self._store.member_pages(partition):
            heads = self._store.heads(page)
            skips: Any = self._log.client.hmget(self._store.keys(partition).skips, page)
            held = [name for name, head in zip(page, heads, strict=True) if head is not None and head.quarantined]
            reasons = dict(zip(held, self._store.holds(held), strict=True))
            closed = [name for name, head in zip(page, heads, strict=True) if head is not None and head.is_elsewhere]
            places = dict(zip(closed, self._store.places(closed), strict=True))
            for session, head, skip in zip(page, heads, skips, strict=True):
                found = self._session(session, head, next(known(session), None), at_ms)
                if found is not None:
                    row, commits = found
                    about = {"quarantined": reasons.get(session), "skips": skip.decode() if skip else None}
                    about |= {"moved": places.get(session)}
                    yield structs.replace(row, policy=head.policy if head is not None else "any", **about), commits

    def _known(self, partition: int) -> Any:
        """Where the base left a session. To be asked in the order of their ids."""
        if self._base is None:
            return lambda _: iter(())
        remaining = rows(self._base, partition)
        row: list[Row | None] = [next(remaining, None)]

        def known(session: str) -> Iterator[Row]:
            while row[0] is not None and row[0].session < session:
                row[0] = next(remaining, None)
            if row[0] is not None and row[0].session == session:
                yield row[0]

        return known

    def _session(
        self, session: str, head: Head | None, base: Row | None, at_ms: int
    ) -> tuple[Row, list[Commit]] | None:
        if base is not None and base.damaged is None:
            if head is not None and (head.seq, head.digest) == (base.seq, base.digest):
                return structs.replace(base, whole=False), []
            since = self._until(session, base.seq - 1, at_ms)
            last = next(since, None)
            if last is not None and (last.last_seq, last.digest) == (base.seq, base.digest):
                row, commits = read_on(structs.replace(base, whole=False), since)
                if row.damaged is None:
                    return row, commits
        # From the beginning: it is new, or does not go on from where the base left it.
        beginning = Row(session, 0, genesis(session), OPEN_GATE, whole=True)
        row, commits = read_on(beginning, self._until(session, 0, at_ms))
        return (row, commits) if commits else None

    def _until(self, session: str, after: int, at_ms: int) -> Iterator[Commit]:
        for commit in self._log.read(session, after=after):
            if commit.at_ms > at_ms:
                return
            yield commit


def read_on(row: Row, commits: Iterable[Commit]) -> tuple[Row, list[Commit]]:
    """Where a session stands after these commits, and the commits; of those that do not verify, all are kept."""
    seq, digest, gate, damaged_from = row.seq, row.digest, row.gate, None
    found = list(commits)
    for commit in found:
        if not is_dense(seq, commit) or not is_chained(digest, commit):
            damaged_from = seq + 1
            break
        seq, digest = commit.last_seq, commit.digest
        gate = gate_of(gate, commit)
    return structs.replace(row, seq=seq, digest=digest, gate=gate, damaged=damaged_from), found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
