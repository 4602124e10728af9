"""Views of keys that sessions share: moved on by what changed in folds of sessions, or merged again from all folds.

A view moves by what one session gave for its key, from `before` to `after`: in the cheapest of four ways that is right:

    nothing was given before                 merge(view, after)
    the projection can subtract              merge(subtract(view, before), after)
    merge(before, after) == after            merge(view, after)         a maximum, a union: nothing given is lost
    else                                     all that sessions gave for the key is merged again
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from domain.errors import Damaged
from projections.own.store import OwnStore
from projections.projection import Definition, Fold
from projections.store import Operation


class Doubt(Exception):
    """A view, or what it is made of, cannot be trusted: the views of the partition have to be merged again."""


class Views:
    """The views of one partition that a batch moves, from when they are first touched to when they are written."""

    def __init__(self, store: OwnStore, partition: int) -> None:
        self._store = store
        self._definition = store.definition
        self._partition = partition
        self._stored: dict[str, bytes | None] = {}
        self._moved: dict[str, bytes | None] = {}
        self._given: dict[str, dict[str, Any]] = {}

    def load(self, keys: Iterable[str]) -> None:
        """Reads views ahead, in one round trip."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._stored]
        self._stored |= zip(missing, self._store.views_of(self._partition, missing), strict=True)

    def move(self, session: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Moves the views by what a session gave before and gives now. All of them, or none if anything is raised.

        Raises Doubt, and whatever the user's code raises.
        """
        moved = {}
        for key in sorted(before.keys() | after.keys()):
            if key not in after:
                raise Doubt(f"session {session} gives nothing for {key!r} any more")
            if key not in before or self._bytes(key, before[key]) != self._bytes(key, after[key]):
                moved[key] = self._after_move(session, key, before, after[key])
        self._moved |= moved
        for key in moved:
            self._given.setdefault(key, {})[session] = after[key]

    def operations(self) -> Iterator[Operation]:
        """The writes that store what was moved."""
        for key, view in sorted(self._moved.items()):
            yield from self._store.write_view(self._partition, key, view)
            if not self._definition.subtracts:
                yield self._store.write_contributors(self._partition, key, sorted(self._given[key]))

    def _after_move(self, session: str, key: str, before: Mapping[str, Any], after: Any) -> bytes:
        definition, projection = self._definition, self._definition.projection
        view = self._view(key)
        if key not in before:
            merged = after if view is None else projection.merge(view, after)
        elif view is None:
            raise Doubt(f"the view of {key!r} is missing")
        elif definition.subtracts:
            merged = projection.merge(projection.subtract(view, before[key]), after)
        else:
            # What `merge` does to its arguments is its own affair: it gets copies.
            kept = projection.merge(self._copy(key, before[key]), self._copy(key, after))
            if self._bytes(key, kept) == self._bytes(key, after):
                merged = projection.merge(view, self._copy(key, after))
            else:
                merged = self._merged_again(key, {**self._given.get(key, {}), session: after})
        return self._bytes(key, merged)

    def _merged_again(self, key: str, given: Mapping[str, Any]) -> Any:
        """What all sessions gave for the key: those of this batch by what they give now, the others by their folds."""
        merged, is_first = None, True
        for state in self._all_given(key, given):
            merged = state if is_first else self._definition.projection.merge(merged, state)
            is_first = False
        return merged

    def _all_given(self, key: str, given: Mapping[str, Any]) -> Iterator[Any]:
        for state in given.values():
            yield self._copy(key, state)
        for page in self._store.contributor_pages(self._partition, key):
            others = [session for session in page if session not in given]
            for session, stored in zip(others, self._store.folds(self._partition, others), strict=True):
                fold = self._definition.decode(stored, session)
                if fold is None or key not in fold.states:
                    raise Doubt(f"what session {session} gave for {key!r} is missing")
                yield fold.states[key]

    def _view(self, key: str) -> Any:
        self.load([key])
        stored = self._moved.get(key, self._stored[key])
        if stored is None:
            return None
        try:
            return self._definition.decode_state(key, stored)
        except Damaged as damaged:
            raise Doubt(damaged.cause) from damaged

    def _bytes(self, key: str, state: Any) -> bytes:
        return self._definition.encode_state(key, state)

    def _copy(self, key: str, state: Any) -> Any:
        return self._definition.decode_state(key, self._bytes(key, state))


def merged(definition: Definition, folds: Iterable[Fold]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The views that folds give, by key, and which sessions gave something for each."""
    views: dict[str, Any] = {}
    sessions: dict[str, list[str]] = {}
    for fold in folds:
        for key, state in fold.states.items():
            views[key] = definition.projection.merge(views[key], state) if key in views else state
            sessions.setdefault(key, []).append(fold.session)
    return views, sessions
