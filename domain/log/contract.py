"""What a log promises: the values that go in and out, and the two faces every log has.

`EventLog` is implemented by `SessionLog` (Redis Streams, blocking) and `MemoryLog`; `AsyncEventLog` by
`AsyncSessionLog`. One contract test suite runs against all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from msgspec import Struct

from domain.codec import Commit
from domain.errors import DeadlineExceeded, MusterError
from domain.events import Event
from domain.stretch import Stretch

if TYPE_CHECKING:
    from domain.log.lease import AsyncLease, Lease
    from domain.log.subscribing.subscription import After, AsyncSubscription, Subscription
    from domain.log.working import AsyncWorkingSession, WorkingSession

#: Where a commit must land: anywhere (`any`), at the beginning (`new`), or right after this seq.
Expected: TypeAlias = Literal["any", "new"] | int
#: Who may append to a session: whoever likes (`any`), with an exact expected seq only (`strict`), with a lease
#: (`leased`).
Policy: TypeAlias = Literal["any", "strict", "leased"]

#: What a receipt says of a commit that waits in the outage spool.
SPOOLED: Final = "spooled"


class Position(Struct, frozen=True, gc=False):
    """A place in a session: the last seq of a commit, and the session's digest there, by which forks are told apart."""

    seq: int
    digest: str | None = None


class Receipt(Struct, frozen=True):
    """What an append returns: where the events stand, and how sure that is.

    `first_seq` to `last_seq` are the events' own; `digest` is the session's after `last_seq` (None after a
    deduplicated append whose last event was known before). `at_ms` is server time. `appended` events are new,
    `duplicates` were there already. `durability` is what was proved: `memory` (the server replied), `local` (on its
    disk), `replicated(k)` (in the memory of k replicas); only what the log was opened to want is looked for.

    Of a log with a spool it may be `spooled` too: the commit is on this host's disk and goes to the server by itself.
    Then `digest` is None, `at_ms` 0, and so are the seqs, unless an exact `expected` said where it must land.

    `wait_ms`: the store is short of memory and asks whoever appends to its partition to wait so long before the next
    time; this log does by itself.
    """

    session: str
    first_seq: int
    last_seq: int
    digest: str | None
    at_ms: int
    appended: int
    duplicates: int = 0
    durability: str = "memory"
    wait_ms: int = 0

    @property
    def position(self) -> Position:
        """Where the session stood after the commit."""
        return Position(self.last_seq, self.digest)

    @property
    def is_spooled(self) -> bool:
        """The commit waits in the outage spool: it is not in the log yet."""
        return self.durability == SPOOLED

    def check_arrived(self) -> None:
        """Raises DeadlineExceeded (SPOOL_WAITS) if the commit waited in the spool when the receipt was given."""
        if self.is_spooled:
            raise DeadlineExceeded("SPOOL_WAITS", f"a commit to session {self.session} waits in the outage spool")


class Head(Struct, frozen=True):
    """Where a session stands: last seq and digest, its gate (o open, c completed, e expired), server ms, and flags.

    A session that was given a policy or a lease before its first event has a head at seq 0.
    """

    seq: int
    digest: str
    gate: str
    at_ms: int
    flags: str = "-"

    @property
    def quarantined(self) -> bool:
        """Appends are refused, because the log is damaged."""
        return "q" in self.flags

    @property
    def is_archived(self) -> bool:
        """The archive holds its beginning, and the log does not."""
        return "a" in self.flags

    @property
    def is_cold(self) -> bool:
        """The archive holds all of it, and nothing came since."""
        return "c" in self.flags

    @property
    def is_elsewhere(self) -> bool:
        """Its writers are at another place: it was moved there, or is on its way here."""
        return "m" in self.flags

    @property
    def policy(self) -> Policy:
        """Who may append."""
        return "leased" if "l" in self.flags else "strict" if "s" in self.flags else "any"

    @property
    def position(self) -> Position:
        """Where the session stands."""
        return Position(self.seq, self.digest)


class Append(Struct, frozen=True):
    """One commit to be appended: its session, where it must land, and its events.

    `known` is what the producer last knew of the session: a repeat is looked for from there on, and a log that does
    not hold it (any more) refuses the commit. `token` is that of a lease; with `heir` the lease passes to that
    agent with the commit. `dedupe`: as `EventLog.append`'s.
    """

    session: str
    events: tuple[Event, ...]
    expected: Expected = "any"
    known: Position | None = None
    traceparent: str | None = None
    token: str | None = None
    heir: str | None = None
    #: Ids that the producer gave its events itself: they may stand in another commit too.
    ids: tuple[str, ...] = ()
    dedupe: bool = False


class AppendRequest(Struct, frozen=True):
    """One commit as it is sent, and as it is in doubt while no reply came to it (`OutcomeUnknown.doubts`).

    The server refuses it after `not_after` (server ms), so that one that was delayed on the way is no surprise later.
    """

    session: str
    expected: Expected
    known: Position | None
    kinds: str
    body: bytes
    traceparent: str | None = None
    not_after: int | None = None
    token: str | None = None
    heir: str | None = None
    #: Ids that the producer gave its events itself: they may stand in another commit too.
    ids: tuple[str, ...] = ()


class Forked(Struct, frozen=True):
    """A fork: all of `session` up to `seq` is a copy of `parent`, whose digest there is `digest`. `receipt` is that of
    the event that says so, at the seq after it.
    """

    session: str
    parent: str
    seq: int
    digest: str
    receipt: Receipt

    @property
    def is_new(self) -> bool:
        """It was not there before."""
        return self.receipt.appended > 0


class CommitReader(Protocol):
    """What folds need of a log."""

    def read(self, session: str, *, after: int = 0, to: int | None = None) -> Iterator[Commit]:
        """The commits that hold events after seq `after`, up to and with the one that holds seq `to`, oldest first."""
        ...

    def read_each(self, sessions: Sequence[str]) -> Iterator[Iterator[Commit]]:
        """The commits of many sessions, oldest first; the beginnings of some dozens come in one round trip.

        For many short sessions, to be gone through in this order: what comes next is asked for before.
        """
        ...

    def stretches(self, session: str, *, after: int = 0) -> Iterator[Stretch]:
        """As `read`, page by page."""
        ...

    def stretches_each(self, sessions: Sequence[str]) -> Iterator[Iterator[Stretch]]:
        """As `read_each`, page by page."""
        ...


class EventLog(CommitReader, Protocol):
    """The blocking face of a log."""

    def append(
        self,
        session: str,
        events: Event | Sequence[Event],
        *,
        expected: Expected = "any",
        known: Receipt | Position | int | None = None,
        dedupe: bool = False,
        traceparent: str | None = None,
    ) -> Receipt:
        """Appends events as one commit, atomically, and returns the receipt.

        `expected`: `any`; `new` (no events yet); or the seq the session must stand at. `known`: the last receipt the
        producer has of the session (the log remembers those it gave itself), so that a producer that was started again
        has its repeats recognised. With `dedupe`, events whose ids the session already holds are left out, and the
        rest is appended; then `expected` must be `any`.

        Raises Refused (bad input, or the session is closed, or its policy asks for more), Conflict (SEQ_CONFLICT:
        `facts` hold expected and actual; PART_KNOWN: some of the events are there, in another commit; LEASE_LOST),
        Damaged (QUARANTINED; TAIL_LOST, FORK: the log does not hold what the producer was told it holds),
        Unavailable (nothing written), OutcomeUnknown (sent, no reply: append the same again).
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

    def lease(self, session: str, agent: str, ttl_ms: int = ...) -> Lease:
        """Takes the exclusive right to append to a session, for `with`; its writers' policy is `leased` from then on.

        Until the lease is released, every append through this log to the session carries its token if all its
        events are the agent's own. Each moves the deadline to `ttl_ms` from then. An agent takes over its own lease
        at once, and whoever held it under its name before is refused from then on.

        Raises Conflict (LEASE_HELD: `facts` hold holder and left_ms).
        """
        ...

    def handoff(
        self,
        session: str,
        agent: str,
        to: str,
        *,
        data: Mapping[str, Any] | None = None,
        event_id: str = "",
        leaves: bool = False,
    ) -> Receipt:
        """Appends `handoff` by an agent to another one, and passes the lease on, if the agent holds it, in the same
        step; with `leaves`, the agent's `left` too.

        From then on nobody but the other agent can take the lease until its time is over. Raises like `append`.
        """
        ...

    def fork(self, session: str, at: int, name: str | None = None, *, who: str = "") -> Forked:
        """Makes a new session with a copy of this one up to the seq `at`, which must end a commit, and an event
        `muster.forked` after it that says so. Both go on by themselves.

        The new one is called `name`, or `<session>@<at>`. The same fork asked for again is found, or finished if it was
        broken off. With `who`, it is noted in the audit stream.

        Raises Refused (FORK_REFUSED: inside a commit; SESSION_INVALID), NotFound (SESSION_UNKNOWN, SEQ_UNKNOWN),
        Conflict (SESSION_TAKEN), Damaged if the session does not verify up to there (`facts`: verified_seq).
        """
        ...

    def set_policy(self, session: str, policy: Policy) -> None:
        """Says who may append to a session, before its first event or later.

        Raises Conflict (LEASE_HELD) while an agent holds the lease.
        """
        ...

    def heartbeat(self, session: str, agent: str, *, silent_after_s: float = ...) -> bool:
        """An agent's sign of life in a session. It costs no event; many a second are fine. Not sent again: who beats
        will beat again.

        Once the agent was silent for `silent_after_s` (up to a day), a worker appends `muster.agent_gone`, once, and it
        is present no more; 0: it leaves, and none is waited for. Returns whether the agent was known to be there: who
        is told False after its first was reported gone, and may say `joined` again.

        Raises NotFound (SESSION_UNKNOWN), Refused, Unavailable.
        """
        ...

    def head(self, session: str) -> Head | None:
        """Where the session stands; None if it was never appended to."""
        ...

    def heads(self, sessions: Sequence[str]) -> list[Head | None]:
        """Where the sessions stand, in one round trip."""
        ...

    def read_back(self, session: str, *, before: int | None = None) -> Iterator[Commit]:
        """The commits that hold events before seq `before` (all without it), newest first."""
        ...

    def position_at(self, session: str, at_ms: int) -> Position:
        """Where the session stood at a time (server ms): at the end of the last commit at or before it; at seq 0 if
        there was none yet.
        """
        ...

    def sessions(self, *, after: str | None = None, limit: int | None = None) -> Iterator[str]:
        """The ids of all sessions by partition and id, beginning after the id `after`. Stable while sessions are
        added.
        """
        ...

    def session(
        self,
        session: str,
        agent: str,
        *,
        exclusive: bool = True,
        ttl_ms: int = ...,
        silent_after_s: float | None = ...,
    ) -> WorkingSession:
        """An agent at work in a session, for `with`: entering takes the lease and appends `joined`; while inside,
        however idle, the lease is kept and heartbeats are sent; leaving appends `left` and gives it back, also after an
        error in the block.

        Not `exclusive`: without a lease, so that several agents may be at work at a time. `silent_after_s`: as
        `heartbeat`'s; None sends none. Raises like `lease` and `append`; an agent that lost its lease is told at its
        next append (LEASE_LOST).
        """
        ...

    def subscribe(
        self,
        session: str | None = None,
        *,
        types: str | Collection[str] | None = None,
        actors: str | Collection[str] | None = None,
        tags: str | Collection[str] | None = None,
        after: After = "now",
    ) -> Subscription:
        """Being told of the events of one session, or of all, each seq once and in the order of its session.

        Of the events, those of certain types (`tool.*`: all that begin so), actors or with one of certain tags.
        `after`: `now`, `beginning`, a seq or receipt of the one session, or a position (also as text) that a
        subscription to the same had. It goes on by itself after disconnections, restarts and trims of the feed.

        Raises Refused (SESSION_INVALID, TYPE_UNKNOWN, ACTOR_INVALID, FIELD_INVALID, POSITION_INVALID, USAGE),
        Misconfigured (STORE_CHANGED: a position in another store).
        """
        ...

    def close(self) -> None:
        """Ends the log's subscriptions and gives the connections back."""
        ...


class AsyncEventLog(Protocol):
    """The asyncio face of a log; each method as in `EventLog`."""

    async def append(
        self,
        session: str,
        events: Event | Sequence[Event],
        *,
        expected: Expected = "any",
        known: Receipt | Position | int | None = None,
        dedupe: bool = False,
        traceparent: str | None = None,
    ) -> Receipt: ...

    async def append_many(self, appends: Sequence[Append]) -> list[Receipt | MusterError]: ...

    async def resolve(self, doubt: AppendRequest) -> Receipt | None: ...

    def lease(self, session: str, agent: str, ttl_ms: int = ...) -> AsyncLease: ...

    async def handoff(
        self,
        session: str,
        agent: str,
        to: str,
        *,
        data: Mapping[str, Any] | None = None,
        event_id: str = "",
        leaves: bool = False,
    ) -> Receipt: ...

    async def fork(self, session: str, at: int, name: str | None = None, *, who: str = "") -> Forked: ...

    async def set_policy(self, session: str, policy: Policy) -> None: ...

    async def heartbeat(self, session: str, agent: str, *, silent_after_s: float = ...) -> bool: ...

    async def head(self, session: str) -> Head | None: ...

    async def heads(self, sessions: Sequence[str]) -> list[Head | None]: ...

    def read(self, session: str, *, after: int = 0, to: int | None = None) -> AsyncIterator[Commit]: ...

    def read_back(self, session: str, *, before: int | None = None) -> AsyncIterator[Commit]: ...

    async def position_at(self, session: str, at_ms: int) -> Position: ...

    def sessions(self, *, after: str | None = None, limit: int | None = None) -> AsyncIterator[str]: ...

    def session(
        self,
        session: str,
        agent: str,
        *,
        exclusive: bool = True,
        ttl_ms: int = ...,
        silent_after_s: float | None = ...,
    ) -> AsyncWorkingSession: ...

    def subscribe(
        self,
        session: str | None = None,
        *,
        types: str | Collection[str] | None = None,
        actors: str | Collection[str] | None = None,
        tags: str | Collection[str] | None = None,
        after: After = "now",
    ) -> AsyncSubscription: ...

    async def close(self) -> None: ...
