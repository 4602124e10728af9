"""Whether what an own projection derived is what the log gives, and what a changed one would give: the rehearsal.

Every session is folded from its first event by the class this process has, up to where the stored fold stands, and held
against it. A rehearsal does so for the fold of the published version, whatever its version: what differs is what
publishing the class as it is here would change. Both write nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Struct

from domain.errors import Damaged
from domain.log.contract import EventLog
from projections.findings import SCHEMA, Finding
from projections.own.folding import Folding
from projections.own.merging import merged
from projections.own.store import DONE, OwnStore, Stored
from projections.projection import Definition, Fold

_REBUILD: Final = "muster projection rebuild {name} --version {version}"
#: How often a partition that keeps moving is read again before its views are left unjudged.
_LOOKS: Final = 20


class Difference(Struct, frozen=True):
    """A session whose state for a key a rehearsal gives otherwise than what is stored; None for no state."""

    schema: str
    projection: str
    session: str
    key: str
    seq: int
    stored: Any
    rehearsed: Any


class OwnRead(Struct):
    """What was read so far.

    `unjudged` are partitions whose views moved all the while, `missing` sessions that have no fold to be held against:
    nothing is said of either.
    """

    sessions: int = 0
    events: int = 0
    differing: int = 0
    missing: int = 0
    unjudged: list[int] = []


class OwnValidator:
    """Verifies one version of an own projection; whoever calls it has its class."""

    def __init__(self, store: OwnStore, log: EventLog) -> None:
        self._store = store
        self._definition = store.definition
        self._log = log
        self.read = OwnRead()

    def everything(self) -> Iterator[Finding]:
        """The findings of all partitions."""
        for partition in range(self._store.keyspace.count):
            yield from self.partition(partition)

    def partition(self, partition: int) -> Iterator[Finding]:
        """The findings of one partition: folds, then views."""
        (build,) = self._store.builds([partition])
        if build != DONE:
            yield self._finding("CURSOR_MISSING", "cursor", partition, None, build or None, DONE)
            return
        is_sound = True
        for page in self._store.member_pages(partition):
            # Read first: what is not in the feed after it must be in the folds.
            cursor = self._store.cursor(partition)
            stored = self._store.stored(partition, page)
            pending: dict[str, int] = {}
            for entry in self._store.feed_after(partition, cursor.position or 0):
                for span in entry.spans:
                    pending.setdefault(span.session, span.from_seq)
            for found in stored:
                fold = self._definition.decode(found.fold, found.session)
                head_seq = found.head.seq if found.head is not None else 0
                due = pending.get(found.session, head_seq + 1) - 1
                should = self._folded(found.session, max(due, fold.seq if fold is not None else 0))
                finding = self._judge(partition, found, fold, should)
                if finding is not None:
                    is_sound = False
                    yield finding
        if self._definition.is_keyed and is_sound:
            yield from self._views(partition)

    def rehearse(self, published: OwnStore | None) -> Iterator[Difference]:
        """What the class here gives for each session and key, where it differs from what `published` has stored.

        `published` reads the folds of another version with no class: states are compared as plain data.
        """
        for partition in range(self._store.keyspace.count):
            for page in self._store.member_pages(partition):
                source = published or self._store
                for found in source.stored(partition, page):
                    stored = source.definition.decode(found.fold, found.session)
                    if stored is None:
                        self.read.missing += 1
                        continue
                    folding = self._folded(found.session, stored.seq)
                    was = _plain(stored.states)
                    now = _plain(folding.fold.states)
                    differing = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
                    self.read.differing += bool(differing)
                    for key in differing:
                        yield Difference(
                            "muster.rehearsal/1",
                            self._store.label,
                            found.session,
                            key,
                            folding.fold.seq,
                            was.get(key),
                            now.get(key),
                        )

    def _judge(self, partition: int, found: Stored, fold: Fold | None, should: Folding) -> Finding | None:
        session, stored, is_parked = found.session, found.fold, found.parked is not None
        if stored == should.encoded:
            return self._parked(partition, session, fold) if is_parked else None
        if is_parked and fold is not None and self._folded(session, fold.seq).encoded == stored:
            return self._parked(partition, session, fold)
        if fold is None:
            if stored is None and should.fold.seq == 0:
                return None
            code = "VIEW_MISSING" if stored is None else "VIEW_UNREADABLE"
        elif fold.seq < should.fold.seq:
            code = "VIEW_BEHIND"
        elif fold.seq > should.fold.seq:
            code = "VIEW_AHEAD"
        else:
            code = "VIEW_DIFFERS"
        was, now = _plain(fold), _plain(should.fold)
        return self._finding(code, "view", partition, session, was, now, seq=should.fold.seq)

    def _parked(self, partition: int, session: str, fold: Fold | None) -> Finding:
        at = fold.seq + 1 if fold is not None else 1
        return self._finding("SESSION_PARKED", "view", partition, session, None, None, seq=at, severity="warning")

    def _views(self, partition: int) -> Iterator[Finding]:
        """Holds the views of a partition against its folds, read while its cursor stood still."""
        store, definition = self._store, self._definition
        for _ in range(_LOOKS):
            cursor = store.cursor(partition)
            listed = [key for page in store.view_key_pages(partition) for key in page]
            folds = (
                fold
                for page in store.fold_pages(partition)
                for session, packed in page.items()
                if (fold := definition.decode(packed, session)) is not None
            )
            views, _ = merged(definition, folds)
            keys = sorted(views.keys() | set(listed))
            stored = store.views_of(partition, keys)
            if store.cursor(partition) == cursor:
                break
        else:
            self.read.unjudged.append(partition)
            return
        for key, view in zip(keys, stored, strict=True):
            should = definition.encode_state(key, views[key]) if key in views else None
            if view != should or (key in views) != (key in listed):
                code = "VIEW_MISSING" if view is None else "VIEW_DIFFERS" if key in views else "VIEW_AHEAD"
                yield self._finding(
                    code, "view", partition, None, _readable(definition, key, view), views.get(key), key=key
                )

    def _folded(self, session: str, to_seq: int) -> Folding:
        folding = Folding(self._definition, self._definition.start(session))
        if to_seq:
            folding.advance(self._log.read(session, to=to_seq), to_seq)
        self.read.sessions += 1
        self.read.events += folding.fold.seq
        return folding

    def _finding(
        self,
        code: str,
        kind: str,
        partition: int,
        session: str | None,
        stored: Any,
        rebuilt: Any,
        *,
        seq: int | None = None,
        key: str | None = None,
        severity: str = "error",
    ) -> Finding:
        remedy = _REBUILD.format(name=self._definition.name, version=self._definition.version)
        if key is not None:
            stored, rebuilt = {key: stored}, {key: rebuilt}
        return Finding(
            SCHEMA,
            code,
            severity,
            kind,
            session,
            None,
            self._store.label,
            seq,
            _plain(stored),
            _plain(rebuilt),
            remedy,
            False,
            partition,
        )


def _readable(definition: Definition, key: str, view: bytes | None) -> Any:
    try:
        return definition.decode_state(key, view) if view is not None else None
    except Damaged:
        return "unreadable"


def _plain(value: Any) -> Any:
    """A state as plain data, in one order, so that it can be compared and printed."""
    return msgspec.to_builtins(value, order="deterministic", str_keys=True)
