"""Reading what own projections derived: the published version's, unless another one is named.

A reader never gets what cannot be trusted: a fold that is missing or damaged is folded from the log, a view from folds,
while the reader waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from heapq import merge as merged_in_order
from itertools import groupby, islice
from typing import Any

from domain.errors import Damaged, DeadlineExceeded, Misconfigured, NotFound
from domain.log import SessionLog
from domain.log.contract import Receipt
from projections.own.catchup import OwnProjector
from projections.own.merging import merged
from projections.own.publishing import Publications
from projections.own.store import OwnStore, Stored
from projections.projection import Definition, Fold, Projection


class OwnViews:
    """The states of own projections, for a process that has their classes."""

    def __init__(self, log: SessionLog, projections: Sequence[Projection]) -> None:
        self._client = log.client
        self._log = log
        self._keyspace = log.keyspace
        self._publications = Publications(log.client, log.keyspace)
        definitions = [Definition(projection) for projection in projections]
        self._definitions = {(definition.name, definition.version): definition for definition in definitions}

    def get(
        self, name: str, key: str, *, version: int | None = None, at_least: Receipt | None = None, wait_s: float = 5.0
    ) -> Any:
        """The state of a key; of a session, for a projection without keys of its own.

        With `at_least`, the receipt of an append, not before that commit is in it: read your own writes.

        Raises NotFound (PROJECTION_UNKNOWN, KEY_UNKNOWN), DeadlineExceeded (BEHIND, SPOOL_WAITS), and Misconfigured
        (PROJECTION_ABSENT) if this process has not the version's class.
        """
        store = self.store(name, version)
        if at_least is not None:
            self._wait_for(store, at_least, wait_s)
        state = self._keyed(store, key) if store.definition.is_keyed else self._of_session(store, key)
        if state is None:
            raise NotFound("KEY_UNKNOWN", f"{store.label} has no state for {key[:200]!r}", key=key)
        return state[0]

    def all(
        self, name: str, *, version: int | None = None, after: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[str, Any]]:
        """All keys and their states: by key, or by partition and id for a projection without keys of its own."""
        store = self.store(name, version)
        found = self._all_keyed(store, after) if store.definition.is_keyed else self._all_sessions(store, after)
        yield from islice(found, limit)

    def store(self, name: str, version: int | None = None) -> OwnStore:
        """The store of the published version, or of the one named. Raises as `get`."""
        found = self._publications.version(name, version)
        definition = self._definitions.get((found.name, found.version))
        if definition is None:
            here = (
                ", ".join(f"{name}@{at}" for known, at in self._definitions if known == name) or "none of its versions"
            )
            raise Misconfigured("PROJECTION_ABSENT", f"{found.label} is not known to this process, which knows {here}")
        return OwnStore(self._client, self._keyspace, definition)

    # -- a state a session -------------------------------------------------------------------------------------------

    def _of_session(self, store: OwnStore, session: str) -> tuple[Any] | None:
        partition = self._keyspace.partition_of(session)
        (fold,) = self._trusted(store, store.stored(partition, [session]))
        return (fold.states[session],) if session in fold.states else None

    def _all_sessions(self, store: OwnStore, after: str | None) -> Iterator[tuple[str, Any]]:
        sessions = self._log.sessions(after=after)
        while page := list(islice(sessions, 256)):
            for partition, group in groupby(page, key=self._keyspace.partition_of):
                for fold in self._trusted(store, store.stored(partition, list(group))):
                    if fold.session in fold.states:
                        yield fold.session, fold.states[fold.session]

    def _trusted(self, store: OwnStore, found: Sequence[Stored]) -> Iterator[Fold]:
        projector = OwnProjector(store, self._log)
        for stored in found:
            fold = store.definition.decode(stored.fold, stored.session)
            if fold is None:
                outcome = projector.brought_in(stored, anew=True)
                fold = outcome.fold if outcome is not None else store.definition.start(stored.session)
            yield fold

    # -- states that sessions share ----------------------------------------------------------------------------------

    def _keyed(self, store: OwnStore, key: str) -> tuple[Any] | None:
        parts = [
            self._part(store, partition, key, stored)
            for partition, stored in enumerate(store.view_parts(key))
            if stored is not None
        ]
        return self._merged(store, [part for part in parts if part is not None])

    def _all_keyed(self, store: OwnStore, after: str | None) -> Iterator[tuple[str, Any]]:
        parts = [self._parts(store, partition, after) for partition in range(self._keyspace.count)]
        for key, group in groupby(merged_in_order(*parts, key=_key), key=_key):
            state = self._merged(store, [(part,) for _, part in group])
            if state is not None:
                yield key, state[0]

    def _parts(self, store: OwnStore, partition: int, after: str | None) -> Iterator[tuple[str, Any]]:
        for page in store.view_key_pages(partition, after=after):
            for key, stored in zip(page, store.views_of(partition, page), strict=True):
                part = self._part(store, partition, key, stored)
                if part is not None:
                    yield key, part[0]

    def _part(self, store: OwnStore, partition: int, key: str, stored: bytes | None) -> tuple[Any] | None:
        try:
            if stored is not None:
                return (store.definition.decode_state(key, stored),)
        except Damaged:
            pass
        folds = (
            fold
            for page in store.fold_pages(partition)
            for session, packed in page.items()
            if (fold := store.definition.decode(packed, session)) is not None and key in fold.states
        )
        views, _ = merged(store.definition, folds)
        return (views[key],) if key in views else None

    @staticmethod
    def _merged(store: OwnStore, parts: Sequence[tuple[Any]]) -> tuple[Any] | None:
        if not parts:
            return None
        state = parts[0][0]
        for (part,) in parts[1:]:
            state = store.definition.projection.merge(state, part)
        return (state,)

    def _wait_for(self, store: OwnStore, receipt: Receipt, wait_s: float) -> None:
        receipt.check_arrived()
        deadline = time.monotonic() + wait_s
        partition = self._keyspace.partition_of(receipt.session)
        while True:
            (stored,) = store.folds(partition, [receipt.session])
            fold = store.definition.decode(stored, receipt.session)
            if fold is not None and fold.seq >= receipt.position.seq:
                return
            if time.monotonic() > deadline:
                at = fold.seq if fold is not None else 0
                cause = f"{store.label} has session {receipt.session} up to {at}, not yet {receipt.position.seq}"
                raise DeadlineExceeded("BEHIND", cause)
            time.sleep(0.002)


def _key(pair: tuple[str, Any]) -> str:
    return pair[0]
