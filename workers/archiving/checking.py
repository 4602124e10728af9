"""Whether the archive holds what the store says it does, and what it holds besides.

A segment that no session names is either left by a process that died before it trimmed, and then the next round names
it; or it is of commits that the log does not hold (any more): what a server lost that the archive knows of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from msgspec import Struct

from domain.codec import genesis
from domain.errors import Damaged, MusterError
from domain.invariants import is_chained, is_dense
from domain.log import SessionLog
from domain.log.archive.joining import labels_of
from domain.log.archive.place import Archive, is_of_archive
from domain.log.archive.segment import Label, label_of, name_of, opened
from domain.log.contract import Position
from domain.log.protocol import Horizon
from projections.findings import Finding, finding
from projections.shortcut import holds
from projections.store import ProjectionStore


class Checked(Struct):
    """What was read."""

    #: Sessions of which something is archived.
    sessions: int = 0
    segments: int = 0
    events: int = 0
    bytes: int = 0
    #: Segments that no session names.
    unnamed: int = 0


class Check:
    """Reads all that is archived of a store. `goes_on` is told of the events of each session."""

    def __init__(
        self, log: SessionLog, store: ProjectionStore, archive: Archive, *, goes_on: Callable[[int], None]
    ) -> None:
        self._log = log
        self._store = store
        self._archive = archive
        self._goes_on = goes_on
        self.read = Checked()

    def findings(self) -> Iterator[Finding]:
        """What is wrong: first with what sessions name, then what the archive holds besides.

        Raises what the archive says as a whole (ARCHIVE_UNREACHABLE, ARCHIVE_DENIED, ARCHIVE_NOT_GIVEN).
        """
        for partition in range(self._store.keyspace.count):
            for page in self._store.member_pages(partition):
                for session, horizon in zip(page, self._store.horizons(page), strict=True):
                    if horizon is not None:
                        yield from self._named(partition, session, horizon)
        yield from self._unnamed()

    def _named(self, partition: int, session: str, horizon: Horizon) -> Iterator[Finding]:
        """Whether the segments that a session names hold all up to its horizon, and chain."""
        self.read.sessions += 1
        seq, digest = 0, genesis(session)
        try:
            for label in labels_of(self._log.identity.store, session, horizon):
                content = self._archive.get(name_of(label))
                commits = opened(name_of(label), content)
                if not is_dense(seq, commits[0]) or not is_chained(digest, commits[0]):
                    raise Damaged("ARCHIVE_DAMAGED", f"segment {name_of(label)} does not follow on seq {seq}")
                seq, digest = commits[-1].last_seq, commits[-1].digest
                self.read.segments += 1
                self.read.bytes += len(content)
            if (seq, digest) != (horizon.seq, horizon.digest):
                raise Damaged(
                    "ARCHIVE_DAMAGED", f"the segments of session {session} end at seq {seq}, not {horizon.seq}"
                )
        except MusterError as error:
            if not is_of_archive(error.code) or error.code in ("ARCHIVE_UNREACHABLE", "ARCHIVE_DENIED"):
                raise
            yield finding(error.code, partition, session=session, first_bad_seq=seq + 1, stored=error.cause)
        self.read.events += seq
        self._goes_on(seq)

    def _unnamed(self) -> Iterator[Finding]:
        """What the archive holds of this store that no session names."""
        labels = map(label_of, self._archive.names(self._log.identity.store))
        by_session = groupby((label for label in labels if label is not None), key=lambda label: label.session)
        for session, found in by_session:
            (horizon,) = self._store.horizons([session])
            named = set() if horizon is None else {*labels_of(self._log.identity.store, session, horizon)}
            for label in found:
                if label not in named:
                    self.read.unnamed += 1
                    yield from self._stray(label)

    def _stray(self, label: Label) -> Iterator[Finding]:
        """A segment that its session does not name: a finding, unless the log holds what is in it."""
        partition = self._store.keyspace.partition_of(label.session)
        name = name_of(label)
        try:
            last = opened(name, self._archive.get(name))[-1]
        except Damaged as damaged:
            yield finding("ARCHIVE_DAMAGED", partition, session=label.session, stored=damaged.cause)
            return
        if not holds(self._log, label.session, Position(last.last_seq, last.digest)):
            yield finding(
                "ARCHIVE_STRAY", partition, session=label.session, first_bad_seq=label.from_seq,
                stored={"segment": name, "seq": last.last_seq, "digest": last.digest},
            )  # fmt: skip
