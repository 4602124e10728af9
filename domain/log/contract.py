"""What a log promises: the values that go in and out, and the two faces every log has.

`EventLog` is implemented by `SessionLog` (Redis Streams, blocking) and `MemoryLog`; `AsyncEventLog` by
`AsyncSessionLog`. One contract test suite runs against all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from domain.codec import Commit
from domain.errors import MusterError
from domain.events import Event

#: Where a commit must land: anywhere (`any`), at the beginning (`new`), or right after this seq.
Expected: TypeAlias = Literal["any", "new"] | int


class Receipt(Struct, frozen=True):
    """What an append returns: where the events stand, and how sure that is.

    `first_seq` to `last_seq` are the events' own; `digest` is the session's after `last_seq` (None after a
    deduplicated append whose last event was known before). `at_ms` is server time. `appended` events are new,
    `duplicates` were there already. `durability` is `memory`: the server replied, and has what it was configured to
    have by then.
    """

    session: str
    first_seq: int
    last_seq: int
    digest: str | None
    at_ms: int
    appended: int
    duplicates: int = 0
    durability: Literal["memory"] = "memory"


class Head(Struct, frozen=True):
    """Where a session stands: last seq and digest, its gate (o open, c completed, e expired), server ms, and flags."""

    seq: int
    digest: str
    gate: str
    at_ms: int
    flags: str = "-"

    @property
    def quarantined(self) -> bool:
        """Appends are refused, because the log is damaged."""
        return "q" in self.flags


class Append(Struct, frozen=True):
    """One commit to be appended: its session, where it must land, and its events.

    `known` is the seq the producer last knew of the session: a repeat is looked for from there on.
    """

    session: str
    events: tuple[Event, ...]
    expected: Expected = "any"
    known: int | None = None
    traceparent: str | None = None


class AppendRequest(Struct, frozen=True):
    """One commit as it is sent, and as it is in doubt while no reply came to it (`OutcomeUnknown.doubts`).

    The server refuses it after `not_after` (server ms), so that one that was delayed on the way is no surprise later.
    """

    session: str
    expected: Expected
    known: int | None
    kinds: str
    body: bytes
    traceparent: str | None = None
    not_after: int | None = None


class EventLog(Protocol):
    """The blocking face of a log."""

    def append(
        self,
        session: str,
        events: Event | Sequence[Event],
        *,
        expected: Expected = "any",
        dedupe: bool = False,
        traceparent: str | None = None,
    ) -> Receipt:
        """Appends events as one commit, atomically, and returns the receipt.

        `expected`: `any`; `new` (no events yet); or the seq the session must stand at. With `dedupe`, events whose
        ids the session already holds are left out, and the rest is appended; then `expected` must be `any`.

        Raises Refused (bad input, or the session is closed), Conflict (SEQ_CONFLICT: `facts` hold expected and actual),
        Damaged (QUARANTINED, …), Unavailable (nothing written), OutcomeUnknown (sent, no reply: append the same again).
        """
        ...

    def append_many(self, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        """Appends many commits in as few round trips as possible: a receipt or an error for each, in order.

        The order of commits of one session is kept. Raises only if the server cannot be reached at all.
        """
        ...

    def resolve(self, doubt: AppendRequest) -> Receipt | None:
        """What became of a commit whose append raised OutcomeUnknown (`error.doubts`).

        Its receipt if it is there; None if it is not and never will be. Waits until that is final: not longer than the
        server may still take the commit, some `timeout_s` + `retry_for_s` after it was first sent.
        """
        ...

    def head(self, session: str) -> Head | None:
        """Where the session stands; None if it was never appended to."""
        ...

    def heads(self, sessions: Sequence[str]) -> list[Head | None]:
        """Where the sessions stand, in one round trip."""
        ...

    def read(self, session: str, *, after: int = 0, to: int | None = None) -> Iterator[Commit]:
        """The commits that hold events after seq `after`, up to and with the one that holds seq `to`, oldest first."""
        ...

    def read_each(self, sessions: Sequence[str]) -> Iterator[Iterator[Commit]]:
        """The commits of many sessions, oldest first; the beginnings of all come in one round trip.

        For many short sessions; of how many at a time is the caller's to choose.
        """
        ...

    def read_back(self, session: str, *, before: int | None = None) -> Iterator[Commit]:
        """The commits that hold events before seq `before` (all without it), newest first."""
        ...

    def sessions(self, *, after: str | None = None, limit: int | None = None) -> Iterator[str]:
        """The ids of all sessions by partition and id, beginning after the id `after`. Stable while sessions are
        added.
        """
        ...

    def close(self) -> None:
        """Gives the connection back."""
        ...


class AsyncEventLog(Protocol):
    """The asyncio face of a log; each method as in `EventLog`."""

    async def append(
        self,
        session: str,
        events: Event | Sequence[Event],
        *,
        expected: Expected = "any",
        dedupe: bool = False,
        traceparent: str | None = None,
    ) -> Receipt: ...

    async def append_many(self, appends: Sequence[Append]) -> list[Receipt | MusterError]: ...

    async def resolve(self, doubt: AppendRequest) -> Receipt | None: ...

    async def head(self, session: str) -> Head | None: ...

    async def heads(self, sessions: Sequence[str]) -> list[Head | None]: ...

    def read(self, session: str, *, after: int = 0, to: int | None = None) -> AsyncIterator[Commit]: ...

    def read_back(self, session: str, *, before: int | None = None) -> AsyncIterator[Commit]: ...

    def sessions(self, *, after: str | None = None, limit: int | None = None) -> AsyncIterator[str]: ...

    async def close(self) -> None: ...
