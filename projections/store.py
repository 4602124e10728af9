"""Where derived values live: what catch-up and recovery load from Redis, and the one step by which they write.

A *step* writes views, checkpoints and totals and moves the partition's cursor, all at once or not at all; it is
refused unless the caller still holds the partition's lease and the cursor stands where the caller read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import redis
from msgspec import Struct, structs

from domain.agent import NOTHING, Totals, contributions, merge
from domain.errors import Conflict, Damaged
from domain.log.contract import Head
from domain.log.feed import FeedEntry, Span, parse_feed_entry, parse_feed_position
from domain.log.keys import Keyspace, PartitionKeys
from domain.log.protocol import HORIZON_FIELDS, Horizon, pack_head, parse_head, parse_horizon, parse_stretch
from domain.log.skips import parse_skips, with_marks
from domain.log.witness import Loss
from domain.session import Session
from domain.stretch import Stretch
from projections import agent_view, indexing, session_view
from projections.parking import ANOTHER_MAY_KNOW, fingerprint

#: How many feed entries are read at a time.
FEED_PAGE: Final = 512
#: The spans of a feed entry that tells of no events.
NO_SPANS: Final = b"\x90"
#: How many names of a registry or an index are read at a time.
MEMBER_PAGE: Final = 256
#: How many entries of an index are read at a time.
INDEX_PAGE: Final = 1000


class Cursor(Struct, frozen=True):
    """How far a projection has applied a partition's feed; `position` is None where there is no cursor yet."""

    position: int | None
    events: int = 0


class Parked(Struct, frozen=True):
    """Why a session is not projected any further: the view stands before the commit at `first_bad_seq`.

    `fingerprint` is the same for the same trouble in any session; `attempts` is how often projecting it was tried.
    """

    code: str
    cause: str
    first_bad_seq: int
    fingerprint: str = ""
    attempts: int = 1

    def is_as(self, other: Parked) -> bool:
        """Whether the trouble is the same one, however often it was met."""
        mine, theirs = ((one.code, one.cause, one.first_bad_seq) for one in (self, other))
        return mine == theirs


class Operation(Struct, frozen=True):
    """One write of a step."""

    command: str
    key: str
    arguments: tuple[Any, ...] = ()


_PARKED = msgspec.json.Decoder(Parked)


class ProjectionStore:
    """What one projection derived in one store, read and written through one blocking client.

    The built-in one unless another is named; `owned` is the name its leases and its parked sessions go by.
    """

    def __init__(
        self,
        client: redis.Redis,
        keyspace: Keyspace,
        *,
        name: str = session_view.NAME,
        version: int = session_view.VERSION,
        owned: str = session_view.NAME,
    ) -> None:
        self.client: Any = client
        self.keyspace = keyspace
        self.name = name
        self.version = version
        self.owned = owned

    def keys(self, partition: int) -> PartitionKeys:
        return self.keyspace.partitions[partition]

    # -- reading -----------------------------------------------------------------------------------------------------

    def cursor(self, partition: int) -> Cursor:
        """How far the partition's feed is applied."""
        pipe = self.client.pipeline(transaction=False)
        pipe.hmget(self.cursor_key(partition), "position", "events")
        return parse_cursor(pipe.execute(raise_on_error=False)[0])

    def total(self, partition: int) -> int:
        """How many events the partition's log ever took."""
        return int(self.client.hget(self.keys(partition).meta, "total") or 0)

    def standing(self, partitions: Iterable[int]) -> dict[int, tuple[int | None, int]]:
        """The cursor's position and the running total of partitions, in one round trip."""
        asked = list(partitions)
        pipe = self.client.pipeline(transaction=False)
        for partition in asked:
            pipe.hget(self.cursor_key(partition), "position")
            pipe.hget(self.keys(partition).meta, "total")
        replies = pipe.execute(raise_on_error=False) if asked else []
        return {
            partition: (parse_position(position), int(total or 0))
            for partition, position, total in zip(asked, replies[::2], replies[1::2], strict=True)
        }

    def feed_after(self, partition: int, position: int) -> list[FeedEntry]:
        """All feed entries after a position."""
        entries: list[FeedEntry] = []
        feed = self.keys(partition).feed
        while True:
            page = self.client.xrange(feed, f"{position + 1}-0", "+", count=FEED_PAGE)
            entries += [parse_feed_entry(entry) for entry in page]
            if len(page) < FEED_PAGE:
                return entries
            position = entries[-1].position

    def oldest_after(self, partition: int, position: int) -> FeedEntry | None:
        """The first feed entry after a position."""
        found = self.client.xrange(self.keys(partition).feed, f"{position + 1}-0", "+", count=1)
        return parse_feed_entry(found[0]) if found else None

    def feed_goes_on(self, partition: int, position: int, total: int) -> bool:
        """Whether the feed has entries after a position that is behind `total`, read before."""
        return position < total and self.oldest_after(partition, position) is not None

    def feed_position(self, partition: int) -> int:
        """The position of the last entry that the feed was ever given; 0 where there is no feed."""
        try:
            return parse_feed_position(self.client.xinfo_stream(self.keys(partition).feed))
        except redis.ResponseError:
            return 0

    def feed_covers(self, partition: int, cursor: Cursor, total: int) -> bool:
        """Whether the feed, from the cursor on, tells of every event up to `total` at least."""
        if cursor.position is None or cursor.position > total:
            return False
        return self.feed_reach(partition, cursor.position) >= total

    def feed_reach(self, partition: int, position: int) -> int:
        """How far the feed tells of every event after a position: to its end, or to where entries are missing."""
        for entry in self.feed_after(partition, position):
            if entry.position - position != entry.events:
                break
            position = entry.position
        return position

    def is_registered(self, session: str) -> bool:
        """Whether anything was ever appended to the session, by the registry's word."""
        return self.client.zscore(self.keyspace.of(session).sessions, session) is not None

    def views(self, sessions: Sequence[str]) -> list[bytes | None]:
        """The stored session views, of any partitions. What is no text counts as missing."""
        pipe = self.client.pipeline(transaction=False)
        for session in sessions:
            pipe.get(self.keyspace.of(session).session_view(session))
        replies = pipe.execute(raise_on_error=False) if sessions else []
        return [unless_of_another_type(reply) for reply in replies]

    def heads(self, sessions: Sequence[str]) -> list[Head | None]:
        """The heads of sessions, of any partitions. One that cannot be read counts as missing."""
        pipe = self.client.pipeline(transaction=False)
        for session in sessions:
            pipe.get(self.keyspace.of(session).head(session))
        replies = pipe.execute(raise_on_error=False) if sessions else []
        return [readable_head(unless_of_another_type(reply)) for reply in replies]

    def spans(self, partition: int, spans: Sequence[Span]) -> tuple[list[bytes | None], list[Stretch], set[str]]:
        """What a batch needs, in one round trip: views, new commits with what is skipped of them, and which sessions
        are parked.
        """
        if not spans:
            return [], [], set()
        keys = self.keys(partition)
        pipe = self.client.pipeline(transaction=False)
        pipe.hmget(keys.parked(session_view.NAME), [span.session for span in spans])
        pipe.hmget(keys.skips, [span.session for span in spans])
        pipe.mget([keys.session_view(span.session) for span in spans])
        for span in spans:
            pipe.xrange(keys.log(span.session), str(span.from_seq), str(span.to_seq))
        parked, skips, views, *logs = pipe.execute()
        commits = [
            with_marks(parse_stretch(span.session, log), parse_skips(skipped))
            for span, log, skipped in zip(spans, logs, skips, strict=True)
        ]
        held = {span.session for span, reason in zip(spans, parked, strict=True) if reason is not None}
        return views, commits, held

    def parked(self, partition: int, sessions: Sequence[str]) -> list[Parked | None]:
        """Why sessions are parked; None for those that are not."""
        stored = self.client.hmget(self.keys(partition).parked(self.owned), list(sessions)) if sessions else []
        return [
            None if reason is None else parse_parked(session, reason)
            for session, reason in zip(sessions, stored, strict=True)
        ]

    def skips(self, partition: int, session: str) -> bytes | None:
        """What of a session is skipped, as it is stored."""
        stored: bytes | None = self.client.hget(self.keys(partition).skips, session)
        return stored

    def server_ms(self) -> int:
        """The server's clock."""
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def parked_pages(self, partition: int) -> Iterator[dict[str, Parked]]:
        """All parked sessions of a partition and why, in pages, in no order.

        One that is parked or unparked meanwhile may be missing; each is told of once.
        """
        key, cursor = self.keys(partition).parked(self.owned), 0
        told: set[str] = set()  # HSCAN repeats what a growing hash moves while it is read
        while True:
            cursor, page = self.client.hscan(key, cursor, count=MEMBER_PAGE)
            named = {name.decode("utf-8", "replace"): reason for name, reason in page.items()}
            yield {name: parse_parked(name, reason) for name, reason in named.items() if name not in told}
            told |= named.keys()
            if not cursor:
                return

    def waiting(self, partitions: Sequence[int]) -> dict[int, list[str]]:
        """The sessions of partitions that are parked until a worker comes that knows more; partitions without are left
        out.
        """
        pipe = self.client.pipeline(transaction=False)
        for partition in partitions:
            pipe.hlen(self.keys(partition).parked(self.owned))
        counts = pipe.execute(raise_on_error=False) if partitions else []
        found = {}
        for partition, count in zip(partitions, counts, strict=True):
            if isinstance(count, int) and count:
                pages = self.parked_pages(partition)
                found[partition] = [
                    name for page in pages for name, why in page.items() if why.code in ANOTHER_MAY_KNOW
                ]
        return {partition: names for partition, names in found.items() if names}

    def types(self, keys: Sequence[str]) -> list[bytes]:
        """The Redis types of keys; b"none" for those that are not there."""
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.type(key)
        return list(pipe.execute()) if keys else []

    def totals(self, partition: int, agents: Sequence[str]) -> list[bytes | None]:
        """The stored totals of agents in a partition."""
        keys = self.keys(partition)
        return list(self.client.mget([keys.agent_view(agent) for agent in agents])) if agents else []

    def statistics(self, partitions: Sequence[int]) -> list[bytes | None]:
        """The stored statistics of partitions."""
        pipe = self.client.pipeline(transaction=False)
        for partition in partitions:
            pipe.get(self.keys(partition).statistics)
        replies = pipe.execute(raise_on_error=False) if partitions else []
        return [unless_of_another_type(reply) for reply in replies]

    def partition_sums(self, partition: int, agents: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        """The stored statistics of a partition, and the totals of agents in it."""
        keys = self.keys(partition)
        statistics, *totals = self.client.mget([keys.statistics, *(keys.agent_view(agent) for agent in agents)])
        return statistics, totals

    def agent_parts(self, agent: str) -> list[tuple[bytes | None, bool]]:
        """An agent's stored totals in every partition, and whether the partition's index lists it, in one round
        trip.
        """
        pipe = self.client.pipeline(transaction=False)
        for keys in self.keyspace.partitions:
            pipe.mget([keys.agent_view(agent)])
            pipe.zscore(keys.agents, agent)
        # An index of another type lists nobody, and cannot say that somebody is not in it.
        replies = [unless_of_another_type(reply, True) for reply in pipe.execute(raise_on_error=False)]
        return [(stored, listed is not None) for (stored,), listed in zip(replies[::2], replies[1::2], strict=True)]

    def checkpoint_seqs(self, partition: int, sessions: Sequence[str]) -> list[list[int]]:
        """The seqs at which sessions have checkpoints."""
        keys = self.keys(partition)
        kinds = self.types([keys.checkpoints(session) for session in sessions])
        pipe = self.client.pipeline(transaction=False)
        for session, kind in zip(sessions, kinds, strict=True):
            if kind == b"hash":
                pipe.hkeys(keys.checkpoints(session))
        seqs = iter(pipe.execute()) if any(kind == b"hash" for kind in kinds) else iter(())
        return [[int(seq) for seq in next(seqs) if seq.isdigit()] if kind == b"hash" else [] for kind in kinds]

    def checkpoints(self, session: str) -> dict[int, bytes]:
        """The stored checkpoints of a session, by seq."""
        key = self.keyspace.of(session).checkpoints(session)
        if self.client.type(key) != b"hash":
            return {}
        return parse_checkpoints(self.client.hgetall(key))

    def holds(self, sessions: Sequence[str]) -> list[dict[str, Any]]:
        """Why sessions are quarantined: code and first bad seq."""
        pipe = self.client.pipeline(transaction=False)
        for session in sessions:
            pipe.hmget(self.keyspace.of(session).hold(session), "code", "first_bad_seq")
        reasons = pipe.execute() if sessions else []
        return [
            {"code": (code or b"?").decode(), "first_bad_seq": int(first_bad_seq or 0)}
            for code, first_bad_seq in reasons
        ]

    def horizons(self, sessions: Sequence[str]) -> list[Horizon | None]:
        """Up to where sessions are in the archive and no more in their logs."""
        pipe = self.client.pipeline(transaction=False)
        for session in sessions:
            pipe.hmget(self.keyspace.of(session).hold(session), *HORIZON_FIELDS)
        replies = [unless_of_another_type(reply) for reply in (pipe.execute(raise_on_error=False) if sessions else [])]
        return [None if reply is None else parse_horizon(reply) for reply in replies]

    def places(self, sessions: Sequence[str]) -> list[dict[str, str]]:
        """Where sessions are that are closed here because of that: the fields that say so."""
        names = ("moved_to", "moved_from", "moved_task", "moved_at")
        pipe = self.client.pipeline(transaction=False)
        for session in sessions:
            pipe.hmget(self.keyspace.of(session).hold(session), *names)
        replies = pipe.execute() if sessions else []
        return [
            {name: value.decode() for name, value in zip(names, told, strict=True) if value is not None}
            for told in replies
        ]

    def losses(self, partition: int) -> list[Loss]:
        """What witnesses reported lost in a partition, and nobody accepted yet."""
        reports = self.client.hvals(self.keys(partition).lost)
        return [msgspec.json.decode(report, type=Loss) for report in reports]

    def flags(self, session: str) -> str:
        """The flags of a head that is lost, by what they point at."""
        hold = self.keyspace.of(session).hold(session)
        code, policy, horizon, to, source = self.client.hmget(
            hold, "code", "policy", "horizon", "moved_to", "moved_from"
        )
        letters = ("q" if code else "") + {b"strict": "s", b"leased": "l"}.get(policy, "")
        return letters + ("a" if horizon else "") + ("m" if to or source else "") or "-"

    def member_pages(self, partition: int, *, agents: bool = False, after: str | None = None) -> Iterator[list[str]]:
        """The sessions of a partition by its registry, or the agents by its index, in pages ordered by id.

        What is no index at all counts as an empty one.
        """
        keys = self.keys(partition)
        key = keys.agents if agents else keys.sessions
        if agents and self.types([key]) != [b"zset"]:
            return
        yield from pages_of(self.client, key, after)

    def readable_views(self, partition: int) -> Iterator[Session]:
        """The session views of a partition, in the order of their ids. Those that are damaged are left out."""
        for page in self.member_pages(partition):
            for session, stored in zip(page, self.views(page), strict=True):
                view = session_view.readable(stored, session)
                if view is not None:
                    yield view

    def summed_totals(self, partition: int) -> dict[str, Totals]:
        """The totals of all agents in a partition, summed from its session views."""
        summed: dict[str, Totals] = {}
        for view in self.readable_views(partition):
            merge(summed, contributions(view))
        return summed

    def summed_statistics(self, partition: int) -> dict[str, int]:
        """The statistics of a partition, summed from its session views."""
        summed: dict[str, int] = {}
        for view in self.readable_views(partition):
            indexing.add(summed, indexing.sums(view))
        return summed

    def index_keys(self, partition: int) -> list[str]:
        """The keys of the indexes of a partition's sessions."""
        keys = self.keys(partition)
        return [keys.session_index, *(indexing.score_index(keys, name) for name in indexing.SCORES)]

    def index_pages(self, key: str) -> Iterator[list[tuple[str, int]]]:
        """What stands in an index, with its scores, in pages, in no order. What is no index at all counts as an empty
        one; an entry that moves meanwhile may be told of twice.
        """
        cursor = 0
        if self.types([key]) != [b"zset"]:
            return
        while True:
            cursor, page = self.client.zscan(key, cursor, count=INDEX_PAGE)
            yield [(entry.decode("utf-8", "replace"), int(score)) for entry, score in page]
            if not cursor:
                return

    # -- writing -----------------------------------------------------------------------------------------------------

    def step(
        self,
        partition: int,
        *,
        token: str,
        cursor_from: int | None,
        cursor_to: int | None,
        events: int = 0,
        operations: Iterable[Operation],
    ) -> None:
        """Writes operations and moves the cursor, or does nothing.

        `cursor_from` None: there is no cursor yet. `cursor_to` None: the cursor is left as it is.

        Raises Conflict: LEASE_TAKEN if the caller lost the partition, CURSOR_MOVED if somebody else moved the cursor.
        """
        names = [self.keys(partition).owner(self.owned), self.cursor_key(partition)]
        index: dict[str, int] = {}
        position = "" if cursor_from is None else str(cursor_from)
        arguments: list[Any] = [token, position, "" if cursor_to is None else cursor_to, events]
        for operation in operations:
            at = index.get(operation.key)
            if at is None:
                names.append(operation.key)
                at = index[operation.key] = len(names)
            arguments += (operation.command, at, len(operation.arguments), *operation.arguments)
        word, *rest = self.client.fcall("muster_step_1", len(names), *names, *arguments)
        if word == b"LEASE_TAKEN":
            raise _lease_taken(partition)
        if word == b"CURSOR_MOVED":
            actual = rest[0].decode()
            raise Conflict(
                "CURSOR_MOVED",
                f"the cursor of partition {partition} stands at {actual or 'nothing'}, not at {position or 'nothing'}",
                partition=partition,
                expected=position,
                actual=actual,
            )

    def begin(self, partition: int, token: str, commit: str, *, done: str) -> int:
        """Notes the commit that is folded next, and that another one is done; each by a name of its own, "" for none.

        Returns how many holders of the lease, with this one, have begun this commit one after another.

        Raises Conflict (LEASE_TAKEN).
        """
        owner = self.keys(partition).owner(self.owned)
        times = int(self.client.fcall("muster_try_1", 1, owner, token, done, commit))
        if not times:
            raise _lease_taken(partition)
        return times

    def quarantine(self, session: str, code: str, first_bad_seq: int) -> None:
        """Closes a session for appends, because its log is damaged from `first_bad_seq` on."""
        keys = self.keyspace.of(session)
        names = (keys.head(session), keys.hold(session), keys.session_index)
        self.client.fcall("muster_quarantine_1", len(names), *names, session, code, first_bad_seq)

    def mended(self, partition: int) -> tuple[Cursor, int]:
        """Raises a running total that was rolled back to where the feed ends, as the next append would; then the cursor
        and the total.
        """
        keys = self.keys(partition)
        pipe = self.client.pipeline(transaction=False)
        pipe.fcall("muster_mend_total_1", 2, keys.meta, keys.feed)
        pipe.hmget(self.cursor_key(partition), "position", "events")
        pipe.hget(keys.meta, "total")
        mended, position, total = pipe.execute(raise_on_error=False)
        for reply in (mended, total):
            if isinstance(reply, Exception):
                raise reply
        return parse_cursor(position), int(total or 0)

    def mend_head(self, session: str, stored: bytes | None, last_entry: str, head: Head) -> bool:
        """Puts a head that fits the log in the place of a damaged one. False if the session moved on meanwhile."""
        keys = self.keyspace.of(session)
        names = (keys.head(session), keys.log(session))
        return bool(self.client.fcall("muster_mend_head_1", 2, *names, stored or b"", last_entry, pack_head(head)))

    def cursor_key(self, partition: int) -> str:
        return self.keys(partition).cursor(self.name, self.version)

    def unbuilt(self, partitions: Sequence[int]) -> set[int]:
        """Those of the partitions whose history has to be brought in before the feed is followed."""
        return set()


def pages_of(client: Any, index: str, after: str | None = None) -> Iterator[list[str]]:
    """The members of an index, in pages in their order, beginning after one."""
    low = "-" if after is None else "(" + after
    while page := client.zrangebylex(index, low, "+", start=0, num=MEMBER_PAGE):
        members = [member.decode("utf-8", "replace") for member in page]
        yield members
        if len(members) < MEMBER_PAGE:
            return
        low = "(" + members[-1]


def _lease_taken(partition: int) -> Conflict:
    return Conflict("LEASE_TAKEN", f"the lease of partition {partition} is no longer held", partition=partition)


def unless_of_another_type(reply: Any, otherwise: Any = None) -> Any:
    """The reply to a command, or `otherwise` where the key is of another type than the command needs."""
    if isinstance(reply, redis.ResponseError) and str(reply).startswith("WRONGTYPE"):
        return otherwise
    if isinstance(reply, Exception):
        raise reply
    return reply


def readable_head(packed: bytes | None) -> Head | None:
    """A head, or None where there is none that can be read."""
    try:
        return parse_head(packed)
    except Damaged:
        return None


def parse_parked(session: str, stored: bytes) -> Parked:
    """The reason a session is parked, as `park` stores it. Older workers stored no fingerprint.

    One that cannot be read is none that a fold would give, so a retry or recovery puts the right one in its place.
    """
    try:
        reason = _PARKED.decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        reason = Parked("KEY_DAMAGED", "its entry in the list of parked sessions cannot be read", 0)
    if reason.fingerprint:
        return reason
    return structs.replace(reason, fingerprint=fingerprint(reason.code, reason.cause, session))


def parse_checkpoints(stored: dict[bytes, bytes]) -> dict[int, bytes]:
    """The checkpoints of a session by seq, as read from their hash."""
    return {int(seq): view for seq, view in stored.items() if seq.isdigit()}


def parse_position(reply: Any) -> int | None:
    """Where a cursor stands; None where there is none, or what stands there is none."""
    return int(reply) if isinstance(reply, bytes) and reply.isdigit() else None


def parse_cursor(reply: Any) -> Cursor:
    """A cursor's position and events, as read from its hash. What is no cursor counts as missing."""
    if not isinstance(reply, list):
        return Cursor(None)
    position, events = (parse_position(field) for field in reply)
    return Cursor(position, events or 0)


# -- the writes of steps ---------------------------------------------------------------------------------------------


def write_view(keys: PartitionKeys, session: str, view: bytes) -> Operation:
    return Operation("SET", keys.session_view(session), (view,))


def write_checkpoints(
    keys: PartitionKeys, session: str, made: dict[int, bytes], stored: Sequence[int]
) -> list[Operation]:
    """Adds checkpoints and drops those that are no longer among the newest."""
    kept = sorted({*made, *stored})[-session_view.CHECKPOINTS_KEPT :]
    added = [part for seq, view in sorted(made.items()) if seq in kept for part in (seq, view)]
    dropped = [seq for seq in stored if seq not in kept]
    key = keys.checkpoints(session)
    operations = []
    if added:
        operations.append(Operation("HSET", key, tuple(added)))
    if dropped:
        operations.append(Operation("HDEL", key, tuple(dropped)))
    return operations


def write_totals(keys: PartitionKeys, agent: str, totals: Totals) -> list[Operation]:
    """Sets an agent's totals in the partition; totals of nothing are no totals."""
    if totals == NOTHING:
        return [Operation("DEL", keys.agent_view(agent)), Operation("ZREM", keys.agents, (agent,))]
    stored = agent_view.encode(agent, totals)
    return [Operation("SET", keys.agent_view(agent), (stored,)), Operation("ZADD", keys.agents, (0, agent))]


def write_statistics(keys: PartitionKeys, sums: Mapping[str, int]) -> Operation:
    """Sets the statistics of a partition; sums of nothing are none."""
    if not sums:
        return Operation("DEL", keys.statistics)
    return Operation("SET", keys.statistics, (indexing.encode_statistics(sums),))


def park(keys: PartitionKeys, session: str, reason: Parked, *, owned: str = session_view.NAME) -> Operation:
    return Operation("HSET", keys.parked(owned), (session, msgspec.json.encode(reason)))


def unpark(keys: PartitionKeys, session: str, *, owned: str = session_view.NAME) -> Operation:
    return Operation("HDEL", keys.parked(owned), (session,))
