"""Where an own projection keeps what it derived: a fold a session, and, where it has keys, a view a key and partition.

    build   how far the history is brought in: `after <session>`, then `views`, then `done`
    fold    what a session's events gave, for each key
    view    what all sessions of the partition gave for a key, merged

Folds move in the step that moves the cursor, and the views with them, by what changed in the folds. Wherever that
cannot be said, because something derived is missing or damaged, `build` goes back to `views` in the same step, and the
views of the partition are merged again from all folds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import redis
from msgspec import Struct

from domain.codec import Commit
from domain.log.contract import Head
from domain.log.feed import Span
from domain.log.keys import Keyspace
from domain.log.protocol import parse_entry
from domain.log.skips import marked, parse_skips
from projections.projection import Definition
from projections.store import (
    Operation,
    Parked,
    ProjectionStore,
    pages_of,
    park,
    parse_parked,
    readable_head,
    unless_of_another_type,
    unpark,
)

#: What `build` says, beside `after <session>`.
VIEWS: Final = "views"
DONE: Final = "done"
_AFTER: Final = "after "


class Stored(Struct, frozen=True):
    """A session as an own projection finds it: its fold, where its log stands, why it is parked if it is."""

    session: str
    fold: bytes | None
    head: Head | None
    parked: Parked | None


class OwnStore(ProjectionStore):
    """The derived keys of one version of an own projection."""

    def __init__(self, client: redis.Redis, keyspace: Keyspace, definition: Definition) -> None:
        super().__init__(client, keyspace, name=definition.name, version=definition.version, owned=definition.label)
        self.definition = definition
        self.label = definition.label

    # -- reading -----------------------------------------------------------------------------------------------------

    def unbuilt(self, partitions: Sequence[int]) -> set[int]:
        return {partition for partition, at in zip(partitions, self.builds(partitions), strict=True) if at != DONE}

    def builds(self, partitions: Sequence[int]) -> list[str]:
        """What `build` says of partitions; "" where nothing was begun."""
        pipe = self.client.pipeline(transaction=False)
        for partition in partitions:
            pipe.get(self.keys(partition).build(self.label))
        replies = pipe.execute(raise_on_error=False) if partitions else []
        return [(unless_of_another_type(reply) or b"").decode("utf-8", "replace") for reply in replies]

    def batch(
        self, partition: int, spans: Sequence[Span]
    ) -> tuple[str, list[bytes | None], list[list[Commit]], set[str]]:
        """What a batch needs, in one round trip: `build`, folds, new commits with what is skipped of them, and which
        sessions are parked.
        """
        keys = self.keys(partition)
        pipe = self.client.pipeline(transaction=False)
        pipe.get(keys.build(self.label))
        if spans:
            pipe.hmget(keys.parked(self.owned), [span.session for span in spans])
            pipe.hmget(keys.skips, [span.session for span in spans])
            pipe.mget([keys.fold(self.label, span.session) for span in spans])
            for span in spans:
                pipe.xrange(keys.log(span.session), str(span.from_seq), str(span.to_seq))
        build, *rest = pipe.execute()
        if not spans:
            return (build or b"").decode(), [], [], set()
        parked, skips, folds, *logs = rest
        commits = [
            marked([parse_entry(span.session, entry) for entry in log], parse_skips(skipped))
            for span, log, skipped in zip(spans, logs, skips, strict=True)
        ]
        held = {span.session for span, reason in zip(spans, parked, strict=True) if reason is not None}
        return (build or b"").decode(), folds, commits, held

    def folds(self, partition: int, sessions: Sequence[str]) -> list[bytes | None]:
        """The stored folds of sessions."""
        keys = self.keys(partition)
        return list(self.client.mget([keys.fold(self.label, session) for session in sessions])) if sessions else []

    def stored(self, partition: int, sessions: Sequence[str]) -> list[Stored]:
        """Folds, heads and whether they are parked, of sessions of a partition, read at one moment."""
        keys = self.keys(partition)
        pipe = self.client.pipeline(transaction=True)
        pipe.hmget(keys.parked(self.owned), list(sessions))
        pipe.mget([keys.fold(self.label, session) for session in sessions])
        pipe.mget([keys.head(session) for session in sessions])
        parked, folds, heads = pipe.execute()
        return [
            Stored(session, fold, readable_head(head), None if reason is None else parse_parked(session, reason))
            for session, fold, head, reason in zip(sessions, folds, heads, parked, strict=True)
        ]

    def fold_pages(self, partition: int) -> Iterator[dict[str, bytes | None]]:
        """All sessions of a partition and their folds, in pages ordered by id."""
        for page in self.member_pages(partition):
            yield dict(zip(page, self.folds(partition, page), strict=True))

    def views_of(self, partition: int, view_keys: Sequence[str]) -> list[bytes | None]:
        """The stored views of keys in one partition."""
        keys = self.keys(partition)
        return list(self.client.mget([keys.merged(self.label, key) for key in view_keys])) if view_keys else []

    def view_parts(self, key: str) -> list[bytes | None]:
        """The stored views of a key in all partitions."""
        pipe = self.client.pipeline(transaction=False)
        for keys in self.keyspace.partitions:
            pipe.get(keys.merged(self.label, key))
        return list(pipe.execute())

    def view_key_pages(self, partition: int, *, after: str | None = None) -> Iterator[list[str]]:
        """The keys that have a view in a partition, in pages ordered by key."""
        return self._members(self.keys(partition).view_keys(self.label), after)

    def contributor_pages(self, partition: int, key: str) -> Iterator[list[str]]:
        """The sessions of a partition that gave something for a key, in pages ordered by id."""
        return self._members(self.keys(partition).contributors(self.label, key), None)

    def _members(self, index: str, after: str | None) -> Iterator[list[str]]:
        if self.types([index]) != [b"zset"]:
            return  # what is no index lists nobody
        yield from pages_of(self.client, index, after)

    # -- the writes of steps -----------------------------------------------------------------------------------------

    def write_build(self, partition: int, at: str) -> Operation:
        return Operation("SET", self.keys(partition).build(self.label), (at,))

    def write_fold(self, partition: int, session: str, fold: bytes) -> Operation:
        return Operation("SET", self.keys(partition).fold(self.label, session), (fold,))

    def write_view(self, partition: int, key: str, view: bytes | None) -> list[Operation]:
        """Sets the view of a key, or takes it away."""
        keys = self.keys(partition)
        name, index = keys.merged(self.label, key), keys.view_keys(self.label)
        if view is None:
            return [Operation("DEL", name), Operation("ZREM", index, (key,))]
        return [Operation("SET", name, (view,)), Operation("ZADD", index, (0, key))]

    def write_contributors(self, partition: int, key: str, sessions: Iterable[str]) -> Operation:
        members = tuple(part for session in sessions for part in (0, session))
        return Operation("ZADD", self.keys(partition).contributors(self.label, key), members)

    def park(self, partition: int, session: str, reason: Parked) -> Operation:
        return park(self.keys(partition), session, reason, owned=self.owned)

    def unpark(self, partition: int, session: str) -> Operation:
        return unpark(self.keys(partition), session, owned=self.owned)


def after(session: str) -> str:
    """What `build` says once the history of all sessions up to this one is in."""
    return _AFTER + session


def resumes_after(build: str) -> str | None:
    """The session that the history is in up to; None where it begins, "" before the first session."""
    return build.removeprefix(_AFTER) if build.startswith(_AFTER) else None
