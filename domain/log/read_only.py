"""Read-only mode: the store takes no appends until somebody says so; reading, verifying and freeing go on.

It stands in each partition's `meta`, which an append reads anyway, and is judged by the server's clock. What a person
closed stays closed until a person opens it. What was closed by itself lapses unless it is closed again, so that nobody
is locked out by a process that died; and never touches what a person said.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from domain.log.connection import raised, send
from domain.log.protocol import Command, Reason, parse_time
from domain.log.redis_streams import SessionLog

FUNCTION: Final = "muster_read_only_1"


class Closed(Struct, frozen=True):
    """Who closed the store for appends, why, and since when (server ms); until when, if it lapses by itself."""

    who: str
    why: str
    since_ms: int
    until_ms: int | None

    @property
    def is_by_itself(self) -> bool:
        return self.until_ms is not None


class ReadOnlyMode:
    """Closes the store that a log is open on, and opens it. All methods may be repeated."""

    def __init__(self, log: SessionLog) -> None:
        self._log = log

    def standing(self, partitions: Iterable[int] | None = None) -> Closed | None:
        """How the store is closed now, or these partitions of it; None if it takes appends."""
        chosen = range(self._log.keyspace.count) if partitions is None else partitions
        asked: list[Command] = [["HGET", self._log.keyspace.partitions[at].meta, "read_only"] for at in chosen]
        if not asked:
            return None
        *stored, clock = self._ask([*asked, ["TIME"]])
        now = parse_time(clock)
        return next((closed for text in stored if (closed := parsed(text, now)) is not None), None)

    def close(self, who: str, why: str, *, lapse_ms: int | None = None) -> int:
        """Has no partition take appends from now on; returns of how many that is news. With `lapse_ms` it is by itself:
        it lapses then, and leaves what a person said.
        """
        news = self._say(lapse_ms or 0, msgspec.json.encode(Reason(who, why)))
        if news:
            self._audit("who", who, "what", "store closed for appends", "why", why)
        return news

    def open(self, who: str, *, by_itself: bool = False) -> int:
        """Has all partitions take appends again, and returns of how many that is news; `by_itself`: unless a person
        closed them.
        """
        news = self._say(1 if by_itself else 0, b"")
        if news:
            self._audit("who", who, "what", "store opened for appends")
        return news

    def _say(self, lapse_ms: int, reason: bytes) -> int:
        store = self._log.identity.store
        keys = self._log.keyspace.partitions
        return sum(self._ask([["FCALL", FUNCTION, 1, one.meta, store, lapse_ms, reason] for one in keys]))

    def _audit(self, *fields: str) -> None:
        self._ask([["XADD", self._log.keyspace.audit, "*", *fields]])

    def _ask(self, commands: list[Command]) -> list[Any]:
        return [raised(reply) for reply in send(self._log.client, commands, self._log.connecting, wrote=False)]


def parsed(text: bytes | None, now: int) -> Closed | None:
    """What the field says at a time of the server's clock; None if the partition takes appends."""
    if not text:
        return None
    until, since, reason = text.split(b" ", 2)
    if until != b"0" and now >= int(until):
        return None
    told = msgspec.json.decode(reason, type=Reason)
    return Closed(told.who, told.why, int(since), int(until) or None)
