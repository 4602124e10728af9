"""Which sessions a migration moves: all, those that are named, or those that meet a filter when it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from domain.errors import NotFound
from domain.events import check_session
from projections.queries import Views
from projections.searching import Filter
from workers.migration.ends import End

T = TypeVar("T")

#: How many sessions are looked at together.
PAGE: Final = 64


def selection_of(sessions: Iterable[str], wanted: Filter) -> dict[str, Any]:
    """The selection, as a record keeps it. Raises Refused (SESSION_INVALID)."""
    named = sorted(set(sessions))
    for session in named:
        check_session(session)
    if named:
        return {"sessions": named}
    return {} if wanted == Filter() else {"filter": msgspec.to_builtins(wanted)}


def selected(end: End, selection: Mapping[str, Any], partition: int | None = None) -> Iterator[str]:
    """The sessions of a store that a selection means; of one of its partitions, or of all.

    Raises NotFound (SESSION_UNKNOWN) for one that is named and not there.
    """
    for session in _meant(end, selection, partition):
        if partition is None or end.keyspace.partition_of(session) == partition:
            yield session


def _meant(end: End, selection: Mapping[str, Any], partition: int | None) -> Iterator[str]:
    if "sessions" in selection:
        for page in pages(selection["sessions"]):
            for session, head in zip(page, end.log.heads(page), strict=True):
                if head is None or not head.seq:
                    raise NotFound("SESSION_UNKNOWN", f"there is no session {session}", session=session)
                yield session
    elif "filter" in selection:
        wanted, cursor, views = msgspec.convert(selection["filter"], Filter), None, Views(end.store, end.log)
        while True:
            found = views.find(wanted, after=cursor)
            yield from (row["session"] for row in found.found)
            cursor = found.cursor
            if cursor is None:
                return
    elif partition is None:
        yield from end.log.sessions()
    else:
        for page in end.store.member_pages(partition):
            yield from page


def pages(items: Iterable[T], size: int = PAGE) -> Iterator[list[T]]:
    """The items, so many at a time."""
    iterator = iter(items)
    while page := list(islice(iterator, size)):
        yield page
