"""The log without its wire: requests, the Redis commands they become, and what the replies mean. Does no I/O.

A *request* is one question to the log. A *flow* is a generator that yields lists of requests and is sent the list
of their answers; what it returns is the result. Shells run flows: they turn the requests of a list into commands,
send these in one write, and give back the answers. So every decision (deduplication, paging, search) is written
once, for the blocking log, the asyncio log and the log in memory.

Appends of one list that belong to one partition travel in one call of the append function, each with its own answer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

import msgspec
from msgspec import Struct, structs

from domain.codec import DEFAULT_LIMITS, Commit, Limits, encode_body, fingerprint
from domain.errors import Conflict, Damaged, Misconfigured, MusterError, NotFound, Refused, Unavailable
from domain.events import Event, check_actor, check_session, is_identifier
from domain.log.contract import Append, AppendRequest, Expected, Head, Policy, Position, Receipt
from domain.log.feed import parse_feed_entry
from domain.log.keys import Keyspace, PartitionKeys
from domain.log.skips import Skips, marked, parse_skips, with_marks
from domain.session import gate_after, kinds_of
from domain.stretch import Stretch

APPEND_FUNCTION = "muster_append_1"
#: A call of the append function carries at most so many commits and bytes; more become several calls.
CALL_COMMITS = 128
CALL_BYTES = 1024 * 1024
#: A page of commits is sized so that it holds about this many bytes, and never more entries than PAGE_ENTRIES.
PAGE_BYTES = 2 * 1024 * 1024
PAGE_ENTRIES = 1024
FIRST_PAGE_ENTRIES = 256
#: The first page of each session when many are read together.
EACH_FIRST_PAGE_ENTRIES = 256
#: How long an agent may be silent at most before it is reported gone, in seconds: a day.
LONGEST_SILENCE_S = 86_400
#: Into how many parts each round trip of a search by time cuts what is left.
SEEK_PARTS = 8
#: How often a deduplicated append reads and decides again when other producers are quicker.
DEDUPE_ATTEMPTS = 32

Command: TypeAlias = list[Any]
T = TypeVar("T")


class Searching(Struct, frozen=True):
    """The answer to an append that the library has to look for: where the session stands. Nothing was written."""

    at: Position


class Unsettled(Struct, frozen=True):
    """The server may still take a commit in doubt, for this many ms."""

    ms: int


class TimeRequest(Struct, frozen=True):
    """The server's clock. Answered by ms since 1970."""


class LeaseRequest(Struct, frozen=True):
    """The lease of a session for an agent. Answered by its token."""

    session: str
    agent: str
    nonce: str
    ttl_ms: int


class RenewRequest(Struct, frozen=True):
    """More time for a lease; None gives it back. Answered by whether it was held."""

    session: str
    token: str
    ttl_ms: int | None


class PolicyRequest(Struct, frozen=True):
    """Who may append to a session from now on. Answered by None."""

    session: str
    policy: Policy


class BeatRequest(Struct, frozen=True):
    """An agent's sign of life in a session: how long it may be silent from now on; 0 that it is there no more. Answered
    by whether it was known to be there.
    """

    session: str
    agent: str
    silent_ms: int


class HeadRequest(Struct, frozen=True):
    """Where a session stands. Answered by a Head or None."""

    session: str


class RangeRequest(Struct, frozen=True):
    """Commits whose last seq lies in [from_seq, to_seq]. Answered by a list of at most `count`."""

    session: str
    from_seq: int
    to_seq: int | None
    count: int
    backward: bool = False


class StretchRequest(Struct, frozen=True):
    """As RangeRequest, for a fold; the answer is a `Stretch`."""

    session: str
    from_seq: int
    count: int


class SkipsRequest(Struct, frozen=True):
    """What of a session was discarded. Answered by Skips."""

    session: str


class HorizonRequest(Struct, frozen=True):
    """Up to where a session's commits are in the archive and no more in its log. Answered by a Horizon or None."""

    session: str


#: The fields of a session's hold that say so.
HORIZON_FIELDS = ("horizon", "horizon_digest", "segments")


class Horizon(Struct, frozen=True):
    """All up to `seq`, whose digest is `digest`, lies in these segments of the archive, oldest first."""

    seq: int
    digest: str
    segments: tuple[str, ...]


class RegistryRequest(Struct, frozen=True):
    """Session ids of a partition after `after`. Answered by a list of at most `count`."""

    partition: int
    after: str | None
    count: int


class StandingRequest(Struct, frozen=True):
    """Where a partition stands. Answered by a Standing."""

    partition: int


class FeedRequest(Struct, frozen=True):
    """What a partition's feed tells of events after a running total. Answered by a list of at most `count` entries."""

    partition: int
    after: int
    count: int


class Standing(Struct, frozen=True):
    """The running total of a partition's events, the server ms at which the last of them was written, the epoch."""

    total: int
    at_ms: int
    epoch: int


class ForkRequest(Struct, frozen=True):
    """One step of copying a session into its fork, which stands `at` a position. Answered by a ForkAnswer.

    `commits` are the parent's, `gate` is the one after them; with a `mark`, the body of the last event, that is all.
    """

    session: str
    parent: str
    seq: int
    digest: str
    at: Position
    gate: str
    commits: tuple[Commit, ...]
    mark: bytes
    who: str


class ForkAnswer(Struct, frozen=True):
    """COPIED or FORKED (the fork stands at `position`), MOVED (it stands elsewhere), TAKEN (it is another session)."""

    word: str
    position: Position
    at_ms: int


Holding: TypeAlias = LeaseRequest | RenewRequest | PolicyRequest | BeatRequest
Feeding: TypeAlias = StandingRequest | FeedRequest
Ranging: TypeAlias = RangeRequest | StretchRequest
Reading: TypeAlias = TimeRequest | HeadRequest | HorizonRequest | Ranging | SkipsRequest | RegistryRequest | Feeding
Request: TypeAlias = AppendRequest | Holding | ForkRequest | Reading
Flow: TypeAlias = Generator[list[Request], list[Any], T]


class Call(Struct):
    """One command, and which answers its reply holds: `answers(reply)` gives one for each of `places`."""

    command: Command
    places: list[int]
    answers: Callable[[Any], list[Any]]
    #: The command writes: without a reply it is unknown whether it took effect.
    writes: bool = False


# -- requests to commands, replies to answers ------------------------------------------------------------------------


class Protocol:
    """Turns requests into commands for one store, and replies into answers."""

    def __init__(self, keyspace: Keyspace, store: str, epoch: int) -> None:
        self.keyspace = keyspace
        self._identity = [store, str(epoch)]

    def calls(self, requests: Sequence[Request]) -> list[Call]:
        """The commands for these requests, in an order that keeps the order within every session."""
        calls: list[Call] = []
        open_calls: dict[int, tuple[list[int], list[AppendRequest], int]] = {}
        skips: dict[int, dict[int, str]] = {}
        for place, request in enumerate(requests):
            if not isinstance(request, AppendRequest):
                if isinstance(request, LeaseRequest | RenewRequest | PolicyRequest | BeatRequest):
                    calls.append(self._hold_call(place, request))
                elif isinstance(request, ForkRequest):
                    calls.append(self._fork_call(place, request))
                elif isinstance(request, SkipsRequest):
                    skips.setdefault(self.keyspace.partition_of(request.session), {})[place] = request.session
                else:
                    calls.append(self._single(place, request))
                continue
            partition = self.keyspace.partition_of(request.session)
            places, grouped, size = open_calls.get(partition, ([], [], 0))
            if grouped and (len(grouped) == CALL_COMMITS or size + len(request.body) > CALL_BYTES):
                calls.append(self._append_call(partition, places, grouped))
                places, grouped, size = [], [], 0
            places.append(place)
            grouped.append(request)
            open_calls[partition] = (places, grouped, size + len(request.body))
        for partition, (places, grouped, _) in open_calls.items():
            calls.append(self._append_call(partition, places, grouped))
        calls += [self._skips_call(partition, asked) for partition, asked in skips.items()]
        return calls

    def _append_call(self, partition: int, places: list[int], requests: list[AppendRequest]) -> Call:
        keys = self.keyspace.partitions[partition]
        names: list[Any] = [keys.meta, keys.sessions, keys.feed]
        arguments: list[Any] = list(self._identity)
        for request in requests:
            session = request.session
            names += (keys.log(session), keys.head(session), keys.hold(session))
            arguments += (
                session,
                request.expected,
                pack_position(request.known),
                "" if request.not_after is None else request.not_after,
                request.token or "",
                request.heir or "",
                " ".join(request.ids),
                request.kinds,
                request.body,
                request.traceparent or "",
            )
        command = ["FCALL", APPEND_FUNCTION, len(names), *names, *arguments]

        def answers(reply: Any) -> list[Any]:
            return [append_answer(request, row) for request, row in zip(requests, reply, strict=True)]

        return Call(command, places, answers, writes=True)

    def _skips_call(self, partition: int, asked: dict[int, str]) -> Call:
        """The sessions of a partition are asked for together: most have no skips."""
        command = ["HMGET", self.keyspace.partitions[partition].skips, *asked.values()]
        return Call(command, list(asked), lambda reply: [parse_skips(stored) for stored in reply])

    def _hold_call(self, place: int, request: Holding) -> Call:
        # Each may be sent again without asking: a lease that is taken twice is held by its second token.
        session = request.session
        keys = self.keyspace.of(session)
        hold = keys.hold(session)
        names = [keys.meta, keys.sessions, keys.head(session), hold]
        command: Command
        match request:
            case LeaseRequest(_, agent, nonce, ttl_ms):
                arguments = [*self._identity, session, agent, nonce, ttl_ms]
                command = ["FCALL", "muster_lease_1", len(names), *names, *arguments]
            case PolicyRequest(_, policy):
                arguments = [*self._identity, session, policy]
                command = ["FCALL", "muster_policy_1", len(names), *names, *arguments]
            case RenewRequest(_, token, ttl_ms):
                name, *more = ["muster_release_1"] if ttl_ms is None else ["muster_renew_1", ttl_ms]
                command = ["FCALL", name, 1, hold, token, *more]
            case BeatRequest(_, agent, silent_ms):
                names = [keys.meta, keys.head(session), keys.beats]
                arguments = [self._identity[0], session, agent, silent_ms]
                command = ["FCALL", "muster_beat_1", len(names), *names, *arguments]
        return Call(command, [place], lambda reply: [hold_answer(session, reply)])

    def _fork_call(self, place: int, request: ForkRequest) -> Call:
        # It may be sent again without asking: what was written moved the fork on, and then it is not written again.
        session = request.session
        keys = self.keyspace.of(session)
        names = [keys.meta, keys.sessions, keys.feed, keys.log(session), keys.head(session), keys.hold(session)]
        names += [keys.audit, keys.skips, keys.session_index]
        arguments: list[Any] = [*self._identity, session, request.parent, request.seq, request.digest]
        arguments += (request.at.seq, request.at.digest, request.gate, request.mark, request.who)
        for commit in request.commits:
            count = commit.last_seq - commit.first_seq + 1
            arguments += (count, commit.body, commit.traceparent or "", "1" if commit.skipped else "")
        command = ["FCALL", "muster_fork_1", len(names), *names, *arguments]
        return Call(command, [place], lambda reply: [fork_answer(session, reply)], writes=True)

    def _single(
        self, place: int, request: TimeRequest | HeadRequest | HorizonRequest | Ranging | RegistryRequest | Feeding
    ) -> Call:
        keys: PartitionKeys
        command: Command
        match request:
            case TimeRequest():
                return Call(["TIME"], [place], lambda reply: [parse_time(reply)])
            case HeadRequest(session):
                command = ["GET", self.keyspace.of(session).head(session)]
                return Call(command, [place], lambda reply: [parse_head(reply)])
            case HorizonRequest(session):
                command = ["HMGET", self.keyspace.of(session).hold(session), *HORIZON_FIELDS]
                return Call(command, [place], lambda reply: [parse_horizon(reply)])
            case RangeRequest(session, from_seq, to_seq, count, backward):
                low, high = str(from_seq), "+" if to_seq is None else str(to_seq)
                log = self.keyspace.of(session).log(session)
                command = ["XREVRANGE", log, high, low] if backward else ["XRANGE", log, low, high]
                command += ["COUNT", count]
                return Call(command, [place], lambda reply: [[parse_entry(session, entry) for entry in reply]])
            case StretchRequest(session, from_seq, count):
                command = ["XRANGE", self.keyspace.of(session).log(session), str(from_seq), "+", "COUNT", count]
                return Call(command, [place], lambda reply: [parse_stretch(session, reply)])
            case RegistryRequest(partition, after, count):
                keys = self.keyspace.partitions[partition]
                low = "-" if after is None else "(" + after
                command = ["ZRANGEBYLEX", keys.sessions, low, "+", "LIMIT", 0, count]
                return Call(command, [place], lambda reply: [[member.decode() for member in reply]])
            case StandingRequest(partition):
                command = ["HMGET", self.keyspace.partitions[partition].meta, "total", "at", "epoch"]
                return Call(command, [place], lambda reply: [Standing(*(_number(value) for value in reply))])
            case FeedRequest(partition, position, count):
                feed = self.keyspace.partitions[partition].feed
                command = ["XRANGE", feed, f"{position + 1}-0", "+", "COUNT", count]
                return Call(command, [place], lambda reply: [[parse_feed_entry(entry) for entry in reply]])


def _number(value: bytes | None) -> int:
    """The number a field holds; 0 for none, or for what is no number."""
    return int(value) if value is not None and value.isdigit() else 0


def append_answer(request: AppendRequest, row: list[Any]) -> Receipt | Searching | MusterError:
    """What one row of the append function's reply means."""
    if row[0] == b"APPENDED":
        first, last = int(row[1]), int(row[2])
        receipt = Receipt(request.session, first, last, row[3].decode(), int(row[4]), appended=last - first + 1)
        return structs.replace(receipt, wait_ms=int(row[5])) if row[5:] else receipt
    word, *rest = [value.decode() if isinstance(value, bytes) else value for value in row]
    session = request.session
    match word:
        case "DUPLICATE":
            first, last, digest, at_ms = int(rest[0]), int(rest[1]), rest[2], int(rest[3])
            return Receipt(session, first, last, digest, at_ms, appended=0, duplicates=last - first + 1)
        case "CONFLICT":
            return conflict(session, request.expected, int(rest[0]))
        case "FENCED":
            return lease_lost(session, rest[0])
        case "LOST":
            assert request.known is not None
            return lost(session, rest[0], request.known, Position(int(rest[1]), rest[2]))
        case "SEARCH":
            return Searching(Position(int(rest[0]), rest[1]))
        case "REFUSED":
            return refused(session, *rest)
        case "DAMAGED":
            return damaged(session, *rest)
    raise AssertionError(f"unknown answer {word!r}")


def hold_answer(session: str, reply: Any) -> Any:
    """What a reply of the functions means that give, keep and take back leases, and set policies."""
    if isinstance(reply, int):
        return reply == 1
    if reply == b"UNKNOWN":
        return unknown_session(session)
    word, *rest = [value.decode() if isinstance(value, bytes) else value for value in reply]
    match word:
        case "OK":
            return None
        case "LEASED":
            return rest[0]
        case "HELD":
            return lease_held(session, rest[0], int(rest[1]))
        case "REFUSED":
            return refused(session, *rest)
        case "DAMAGED":
            return damaged(session, *rest)
    raise AssertionError(f"unknown answer {word!r}")


def fork_answer(session: str, reply: list[Any]) -> ForkAnswer | MusterError:
    """What a reply of the function means that copies a session."""
    word, *rest = [value.decode() for value in reply]
    match word:
        case "COPIED" | "FORKED":
            return ForkAnswer(word, Position(int(rest[0]), rest[1]), int(rest[2]))
        case "MOVED" | "TAKEN":
            return ForkAnswer(word, Position(0), 0)
        case "REFUSED":
            return refused(session, *rest)
        case "DAMAGED":
            return damaged(session, *rest)
    raise AssertionError(f"unknown answer {word!r}")


class Reason(Struct, frozen=True):
    """Who closed the store for appends, and why."""

    who: str
    why: str


def read_only(session: str, since_ms: int, until_ms: int, reason: str) -> Unavailable:
    """The store is closed for appends."""
    told = msgspec.json.decode(reason, type=Reason)
    lapse = f", for now until {_time(until_ms)}" if until_ms else ""
    return Unavailable(
        "READ_ONLY",
        f"session {session}: the store takes no appends since {_time(since_ms)}{lapse}, by {told.who}: {told.why}",
        session=session,
        who=told.who,
        why=told.why,
        since_ms=since_ms,
        until_ms=until_ms or None,
    )


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def refused(session: str, code: str, *rest: str) -> MusterError:
    """What the append function refuses, from its words."""
    match code:
        case "READ_ONLY":
            return read_only(session, int(rest[0]), int(rest[1]), rest[2])
        case "MEMORY_HIGH":
            return Unavailable(code, f"the server is short of memory: nothing is appended to session {session} now")
        case "MOVED_TO":
            return moved_to(session, rest[0])
        case "SESSION_ARRIVING":
            return arriving(session, rest[0])
        case "GATE_REFUSED":
            return gate_refused(session, int(rest[0]), rest[1], int(rest[2]))
        case "TOO_LATE":
            return too_late(session, int(rest[0]))
        case "LEASE_REQUIRED":
            return lease_required(session, rest[0])
        case "EXPECTED_REQUIRED":
            return expected_required(session, int(rest[0]))
    return Refused(code, f"session {session}: {' '.join(rest)}", session=session)


def damaged(session: str, code: str, *rest: str) -> Damaged:
    """What the append function found damaged, from its words."""
    if code == "QUARANTINED":
        return quarantined(session, rest[0], int(rest[1]))
    return Damaged(code, f"session {session}: the log and its head do not fit together", session=session)


def chunks(commits: Iterable[Commit]) -> Iterator[list[Commit]]:
    """Commits that exist already, as many as a call of a function takes at a time."""
    chunk: list[Commit] = []
    size = 0
    for commit in commits:
        if chunk and (len(chunk) == CALL_COMMITS or size + len(commit.body) > CALL_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(commit)
        size += len(commit.body)
    if chunk:
        yield chunk


def pack_position(known: Position | None) -> str:
    """What a producer last knew, as the append function reads it."""
    if known is None:
        return ""
    return str(known.seq) if known.digest is None else f"{known.seq} {known.digest}"


def moved_to(session: str, place: str) -> Conflict:
    """The session was moved: its writers append at the place."""
    return Conflict("MOVED_TO", f"session {session} was moved to {place}", session=session, place=place)


def arriving(session: str, place: str) -> Unavailable:
    """The session is on its way here, and its writers append where it comes from until it is whole."""
    return Unavailable(
        "SESSION_ARRIVING", f"session {session} is on its way here from {place}", session=session, place=place
    )


def unknown_session(session: str) -> NotFound:
    """Nothing was ever appended to the session."""
    return NotFound("SESSION_UNKNOWN", f"there is no session {session}", session=session)


def lease_required(session: str, holder: str) -> Refused:
    """The session takes appends by the holder of its lease only."""
    who = f"held by {holder}" if holder else "held by nobody"
    return Refused("LEASE_REQUIRED", f"session {session} is leased, and {who}", session=session, holder=holder)


def lease_lost(session: str, holder: str) -> Conflict:
    """The lease that the commit carried is over: past its deadline, taken over, or given back."""
    return Conflict("LEASE_LOST", f"the lease of session {session} is over", session=session, holder=holder)


def lease_held(session: str, holder: str, left_ms: int) -> Conflict:
    """Somebody else holds the lease."""
    return Conflict(
        "LEASE_HELD",
        f"the lease of session {session} is held by {holder} for {left_ms} ms more, or until given back",
        session=session,
        holder=holder,
        left_ms=left_ms,
    )


def expected_required(session: str, seq: int) -> Refused:
    """The session takes appends with an exact expected seq only."""
    return Refused(
        "EXPECTED_REQUIRED",
        f"session {session} is strict; an append must say which seq it expects (it stands at {seq})",
        session=session,
        actual=seq,
    )


def lost(session: str, code: str, seen: Position, found: Position) -> Damaged:
    """The log does not hold what a producer was told it holds: it ends before it, or holds other commits there."""
    if code == "TAIL_LOST":
        first = found.seq + 1
        cause = f"session {session} ends at seq {found.seq}; seq {seen.seq} was acknowledged"
    else:
        first = seen.seq
        cause = f"session {session} holds other commits at seq {seen.seq} than were acknowledged"
    return Damaged(code, cause, session=session, first_bad_seq=first, seen=seen, found=found, lost=[])


def part_known(session: str, known: dict[str, int]) -> Conflict:
    """Some events of a commit are there, but not as this commit."""
    named = ", ".join(f"{event_id} at seq {seq}" for event_id, seq in list(known.items())[:5])
    return Conflict(
        "PART_KNOWN", f"session {session} holds a part of the commit: {named}", session=session, known=known
    )


def conflict(session: str, expected: Expected, actual: int) -> Conflict:
    """The session is not where the commit expected it."""
    return Conflict(
        "SEQ_CONFLICT",
        f"session {session} was expected at seq {0 if expected == 'new' else expected} and stands at {actual}",
        session=session,
        expected=0 if expected == "new" else expected,
        actual=actual,
    )


def gate_refused(session: str, position: int, gate: str, seq: int) -> Refused:
    """The session is closed for one of the commit's events; `position` counts them from 1."""
    was = {"o": "open", "c": "completed", "e": "expired"}[gate]
    return Refused(
        "GATE_REFUSED",
        f"session {session} is {was} at seq {seq}; it takes no such event as number {position} of the commit",
        session=session,
        position=position,
        gate=gate,
        seq=seq,
    )


def too_late(session: str, server_ms: int) -> Refused:
    """The commit came after its `not_after`, and was not there before."""
    return Refused(
        "TOO_LATE",
        f"a commit to session {session} came after its time: it is {server_ms} by the server's clock",
        session=session,
        server_ms=server_ms,
    )


def quarantined(session: str, code: str, first_bad_seq: int) -> Damaged:
    """The session takes no appends, because its log is damaged."""
    return Damaged(
        "QUARANTINED",
        f"session {session} is quarantined: {code} from seq {first_bad_seq} on",
        session=session,
        reason=code,
        first_bad_seq=first_bad_seq,
    )


def position_of(head: Head | None) -> Position:
    """Where a session stands by its head; at seq 0 without one."""
    return Position(0) if head is None else head.position


def parse_time(reply: Sequence[bytes]) -> int:
    """The server's clock in ms since 1970."""
    seconds, micros = reply
    return int(seconds) * 1000 + int(micros) // 1000


def parse_head(packed: bytes | None) -> Head | None:
    """A head as the append function packs it. Raises Damaged (HEAD_MISSING) if it is no such thing."""
    if packed is None:
        return None
    try:
        seq, digest, gate, at_ms, flags = packed.decode().split(" ")
        return Head(int(seq), digest, gate, int(at_ms), flags)
    except ValueError:
        raise Damaged("HEAD_MISSING", f"a head holds {packed[:60]!r}") from None


def parse_horizon(reply: Sequence[bytes | None]) -> Horizon | None:
    """What the hold of a session says of what is archived of it."""
    seq, digest, segments = (value.decode("utf-8", "replace") if value is not None else "" for value in reply)
    return Horizon(int(seq), digest, tuple(segments.splitlines())) if seq.isdigit() and int(seq) else None


def pack_head(head: Head) -> str:
    """The inverse of `parse_head`."""
    return f"{head.seq} {head.digest} {head.gate} {head.at_ms} {head.flags}"


def parse_entry(session: str, entry: tuple[bytes, Any]) -> Commit:
    """A stream entry as a commit. An entry that is no commit comes out with a digest that no chain holds."""
    entry_id, flat = entry
    last, _, count = entry_id.partition(b"-")
    if len(flat) == 6 and flat[0] == b"t" and flat[2] == b"d" and flat[4] == b"b" and flat[1].isdigit():
        # As the append function writes it; all that is otherwise is taken apart below.
        seq = int(last)
        return Commit(session, seq - int(count) + 1, seq, int(flat[1]), flat[3].decode("ascii", "replace"), flat[5])
    fields = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}
    trace = fields.get(b"c")
    at_ms = fields.get(b"t", b"0")
    return Commit(
        session,
        int(last) - int(count) + 1,
        int(last),
        int(at_ms) if at_ms.isdigit() else 0,
        fields.get(b"d", b"").decode("ascii", "replace"),
        fields.get(b"b", b""),
        trace.decode("utf-8", "replace") if trace is not None else None,
    )


def parse_stretch(session: str, entries: Sequence[tuple[bytes, Any]]) -> Stretch:
    """Stream entries as a stretch, at a stroke if all are as the append function writes them."""
    try:
        ids, flats = zip(*entries, strict=True)
        names, times, more, digests, last, bodies, *trace = zip(*flats, strict=True)
        count = len(entries)
        is_plain = (names.count(b"t"), more.count(b"d"), last.count(b"b")) == (count, count, count)
        traces = None
        if trace:
            name, traces = trace
            is_plain = is_plain and name.count(b"c") == count
        if is_plain and b"".join(times).isdigit():
            numbers = _NUMBERS.decode(b"[" + b",".join(ids).replace(b"-", b",") + b"]")
            at_ms = _NUMBERS.decode(b"[" + b",".join(times) + b"]")
            return Stretch(session, numbers[::2], numbers[1::2], at_ms, digests, bodies, traces)
    except (ValueError, TypeError, msgspec.MsgspecError):
        pass  # one by one, then: no entries, some with a trace and some without, or what is no commit
    return Stretch.of(session, [parse_entry(session, entry) for entry in entries])


_NUMBERS = msgspec.json.Decoder(list[int])

#: What the server's error replies mean, by their first word; the first match counts.
SERVER_WORDS: tuple[tuple[str, type[MusterError], str], ...] = (
    ("STORE_MISSING", Misconfigured, "STORE_MISSING"),
    ("STORE_CHANGED", Misconfigured, "STORE_CHANGED"),
    ("EPOCH_CHANGED", Misconfigured, "EPOCH_CHANGED"),
    ("ARGUMENTS_INVALID", Refused, "ARGUMENTS_INVALID"),
    ("STORE_DAMAGED", Damaged, "STORE_DAMAGED"),
    ("WRONGTYPE", Damaged, "KEY_DAMAGED"),
    ("ERR Function not found", Misconfigured, "FUNCTIONS_MISSING"),
    ("OOM", Unavailable, "SERVER_OUT_OF_MEMORY"),
    ("READONLY", Unavailable, "SERVER_READ_ONLY"),
    ("MISCONF", Unavailable, "SERVER_CANNOT_PERSIST"),
    ("NOREPLICAS", Unavailable, "SERVER_LACKS_REPLICAS"),
    ("LOADING", Unavailable, "SERVER_LOADING"),
    ("MASTERDOWN", Unavailable, "SERVER_CUT_OFF"),
    ("BUSY ", Unavailable, "SERVER_BUSY"),
    ("NOSCRIPT", Unavailable, "SCRIPT_MISSING"),
    ("CLUSTERDOWN", Unavailable, "CLUSTER_DOWN"),
    ("TRYAGAIN", Unavailable, "SLOT_UNSTABLE"),
    ("MOVED ", Misconfigured, "SLOT_MOVED"),
    ("ASK ", Misconfigured, "SLOT_MOVED"),
    ("CROSSSLOT", Misconfigured, "SLOTS_CROSSED"),
    ("ERR max number of clients reached", Unavailable, "SERVER_FULL"),
    ("NOAUTH", Misconfigured, "ACCESS_DENIED"),
    ("ERR Protocol error: unauthenticated", Misconfigured, "ACCESS_DENIED"),  # a long command before AUTH
    ("WRONGPASS", Misconfigured, "ACCESS_DENIED"),
    ("NOPERM", Misconfigured, "ACCESS_DENIED"),
    ("ACCESS_DENIED", Misconfigured, "ACCESS_DENIED"),
    ("ERR The user executing the script can't", Misconfigured, "ACCESS_DENIED"),  # Redis, within a function
    ("ERR ACL failure in script", Misconfigured, "ACCESS_DENIED"),  # Valkey
)


def server_error(message: str) -> MusterError:
    """The typed error for an error reply of the server; of a transaction that was refused, for the reason."""
    reason = message.removeprefix("EXECABORT Transaction discarded because of: ")
    for prefix, raised_as, code in SERVER_WORDS:
        if reason.startswith(prefix):
            return raised_as(code, f"the server says: {message}")
    return Unavailable("SERVER_ERROR", f"the server says: {message}")


# -- flows -----------------------------------------------------------------------------------------------------------


def append_flow(append: Append, limits: Limits = DEFAULT_LIMITS) -> Flow[Receipt]:
    """One commit, so that sending its request again is harmless: everything that can be checked here is checked first.

    A commit expected anywhere is recognised, when it comes twice, among those after the seq its producer last knew;
    so a producer that knows none is told the head first.
    """
    if append.dedupe:
        return (yield from dedupe_flow(append, limits))
    request = encode_append(append, limits)
    if request.expected == "any" and request.known is None:
        (head,) = yield [HeadRequest(append.session)]
        request = structs.replace(request, known=position_of(taken(head)))
    return (yield from sent_flow(request))


def sent_flow(request: AppendRequest) -> Flow[Receipt]:
    """A commit as it is sent, also again; one expected anywhere says what its producer knew when it was first sent."""
    while True:
        (answer,) = yield [request]
        if isinstance(answer, Searching):
            # More came since than the function searches, or some of it looks like a part of this commit, and nothing
            # was written: search here, then say what is known.
            after = _search_after(request)
            seen = request.known if request.known is not None and request.known.seq == after > 0 else None
            commit = yield from _search_flow(request, after, answer.at.seq, seen)
            if commit is not None and (request.expected == "any" or commit.first_seq == after + 1):
                return repeated(commit)
            if request.expected != "any":
                raise conflict(request.session, request.expected, answer.at.seq)
            request = structs.replace(request, known=answer.at)
            continue
        if isinstance(answer, Conflict) and answer.code == "SEQ_CONFLICT" and request.ids:
            yield from _search_flow(request, _search_after(request), answer.facts["actual"])
        receipt: Receipt = taken(answer)
        return receipt


def append_many_flow(appends: Sequence[Append], limits: Limits = DEFAULT_LIMITS) -> Flow[list[Receipt | MusterError]]:
    """Many commits, side by side; each with its own receipt or error.

    Heads that must be told are asked for first, so that all commits leave together, in the order given.
    """
    told = list(dict.fromkeys(append.session for append in appends if _must_be_told(append)))
    heads: list[Any] = (yield [HeadRequest(session) for session in told]) if told else []
    answers = dict(zip(told, heads, strict=True))
    return (yield from together([_told_flow(append, answers, limits) for append in appends]))


def _told_flow(append: Append, heads: Mapping[str, Any], limits: Limits) -> Flow[Receipt]:
    """One commit of many, whose session's head was asked for, if need be."""
    if _must_be_told(append):
        append = structs.replace(append, known=position_of(taken(heads[append.session])))
    return (yield from append_flow(append, limits))


def _must_be_told(append: Append) -> bool:
    """The producer knows no seq of the session, and needs one so that a repeat is recognised."""
    is_told = append.expected != "any" or append.known is not None or append.dedupe
    return not is_told and is_identifier(append.session)


def dedupe_flow(append: Append, limits: Limits = DEFAULT_LIMITS, known: KnownEvents | None = None) -> Flow[Receipt]:
    """Appends those of the events that the session does not hold yet, whatever batches they came in before.

    `known` is what an earlier flow for the session read; it is brought up to date here. Raises as `check_deduped`.
    """
    check_deduped(append)
    session, events = append.session, append.events
    known = known if known is not None else KnownEvents(session)
    yield from known.refresh_flow()
    for _ in range(DEDUPE_ATTEMPTS):
        fresh, seqs = known.split(events)
        if not fresh:
            return Receipt(session, min(seqs), max(seqs), None, known.at_ms, appended=0, duplicates=len(events))
        at = Position(known.seq, known.digest or None)
        request = encode_append(structs.replace(append, events=tuple(fresh), expected=known.seq, known=at), limits)
        (answer,) = yield [request]
        if isinstance(answer, Conflict) and answer.code == "SEQ_CONFLICT":
            yield from known.refresh_flow()
            continue
        receipt = taken(answer)
        known.add(fresh, receipt)
        return Receipt(
            session,
            min([receipt.first_seq, *seqs]),
            receipt.last_seq,
            receipt.digest,
            receipt.at_ms,
            appended=receipt.appended,
            duplicates=len(events) - receipt.appended,
            durability=receipt.durability,
        )
    raise conflict(session, known.seq, known.seq)


def check_deduped(append: Append) -> None:
    """Raises Refused (SESSION_INVALID, EXPECTED_INVALID, ID_INVALID, COMMIT_EMPTY) for what cannot be deduplicated."""
    check_session(append.session)
    if append.expected != "any":
        raise Refused("EXPECTED_INVALID", "a deduplicated append finds its own place: expect `any`")
    for event in append.events:
        if not event.id:
            raise Refused("ID_INVALID", "an event without an id cannot be recognised", session=append.session)
    if not append.events:
        raise Refused("COMMIT_EMPTY", "a commit holds no event", session=append.session)


class KnownEvents:
    """The ids a session holds, with a fingerprint and the seq of each, as of `seq`."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.seq = 0
        self.digest = ""
        self.gate = "o"
        self.at_ms = 0
        self._held: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def refresh_flow(self) -> Flow[None]:
        """Reads what came since. The head is asked first, so that an unchanged session costs one small read."""
        (answer,) = yield [HeadRequest(self.session)]
        head: Head | None = taken(answer)
        if head is None or (head.seq, head.digest) == (self.seq, self.digest):
            return
        reading = ReadFlow(self.session, after=self.seq)
        while (page := (yield from reading.next_page())) is not None:
            for commit in page:
                for seq, event in enumerate(_events_of(commit), commit.first_seq):
                    self._held[event.id] = (fingerprint(event), seq)
                self.seq, self.digest, self.at_ms = commit.last_seq, commit.digest, commit.at_ms
        self.gate = head.gate

    def split(self, events: Sequence[Event]) -> tuple[list[Event], list[int]]:
        """The events that are new, and the seqs of those that are held. Raises Refused (ID_REUSED)."""
        fresh: dict[str, Event] = {}
        seqs: list[int] = []
        for event in events:
            if event.id in fresh:
                if fingerprint(fresh[event.id]) != fingerprint(event):
                    raise self.reused(event.id)
                continue
            held = self._held.get(event.id)
            if held is None:
                fresh[event.id] = event
            elif held[0] == fingerprint(event):
                seqs.append(held[1])
            else:
                raise self.reused(event.id)
        return list(fresh.values()), seqs

    def holds(self, event: Event) -> bool:
        """Whether this very event is held. Raises Refused (ID_REUSED) if another one is held under its id."""
        held = self._held.get(event.id)
        if held is not None and held[0] != fingerprint(event):
            raise self.reused(event.id)
        return held is not None

    def add(self, events: Sequence[Event], receipt: Receipt) -> None:
        """Notes what an append of ours added."""
        for seq, event in enumerate(events, receipt.first_seq):
            self._held[event.id] = (fingerprint(event), seq)
        self.seq, self.digest, self.at_ms = receipt.last_seq, receipt.digest or "", receipt.at_ms
        self.gate = gate_after(self.gate, kinds_of(events))[0]

    def reused(self, event_id: str) -> Refused:
        """The error for an id that stands for another event already."""
        return Refused("ID_REUSED", f"session {self.session} holds another event with the id {event_id}", id=event_id)


class ReadFlow:
    """Reads a session's commits page by page; the page size follows the size of what came."""

    def __init__(
        self, session: str, *, after: int = 0, to: int | None = None, first_page: int = FIRST_PAGE_ENTRIES
    ) -> None:
        check_session(session)
        self._session = session
        self._low = max(after, 0) + 1
        self._to = to
        self._count = first_page
        self._skips: Skips | None = None
        self.done = to is not None and to <= after

    def next_page(self) -> Flow[Stretch | None]:
        """The next page, or None at the end."""
        if self.done:
            return None
        # A stream is ordered by the last seq of its commits, and the commit that holds `to` may end after it: so
        # the range is left open, and the page is cut here.
        request = StretchRequest(self._session, self._low, self._count)
        self._skips, answer = yield from _with_skips(request, self._skips)
        page = with_marks(taken(answer), self._skips)
        self.done = len(page) < self._count
        if not page:
            return None
        last_seq = page.lasts[-1]
        self._low = last_seq + 1
        self._count = _count_by(page.bodies)
        if self._to is not None and last_seq >= self._to:
            self.done = True
            page = page[: page.up_to(self._to)]
        return page


class ReadBackFlow:
    """Reads a session's commits page by page, newest first."""

    def __init__(self, session: str, *, before: int | None = None) -> None:
        check_session(session)
        self._session = session
        self._before = before
        self._high: int | None = None
        self._count = FIRST_PAGE_ENTRIES
        self._done = before is not None and before <= 1
        self._skips: Skips | None = None

    def next_page(self) -> Flow[list[Commit] | None]:
        """The next page, or None at the end."""
        if self._done:
            return None
        if self._before is not None:
            # A commit that ends at or after `before` may begin before it: then it is the first of those that end there.
            (answer,) = yield [RangeRequest(self._session, self._before, None, 1)]
            at = taken(answer)
            self._high = at[0].last_seq if at and at[0].first_seq < self._before else self._before - 1
            self._before = None
        request = RangeRequest(self._session, 1, self._high, self._count, backward=True)
        self._skips, answer = yield from _with_skips(request, self._skips)
        page: list[Commit] = marked(taken(answer), self._skips)
        self._done = len(page) < self._count
        if not page:
            return None
        self._high = page[-1].first_seq - 1
        self._done = self._done or self._high < 1
        self._count = next_count(page)
        return page


def seek_flow(session: str, at_ms: int) -> Flow[Position]:
    """Where a session stood at a time (server ms): the end of the last commit at or before it; seq 0 before the first.

    Times grow with seqs, so each round trip cuts what is left into SEEK_PARTS parts: a log of a hundred thousand
    commits takes six, and none of them is folded.
    """
    check_session(session)
    (answer,) = yield [RangeRequest(session, 1, None, 1, backward=True)]
    last: list[Commit] = taken(answer)
    stood = Position(0)
    low, high = 0, last[0].last_seq if last else 0
    while low < high:
        seqs = sorted({low + max(1, (high - low) * part // SEEK_PARTS) for part in range(1, SEEK_PARTS + 1)})
        answers = yield [RangeRequest(session, seq, None, 1) for seq in seqs]
        for page in map(taken, answers):
            for commit in page:
                if commit.at_ms <= at_ms and commit.last_seq > low:
                    low, stood = commit.last_seq, Position(commit.last_seq, commit.digest)
                elif commit.at_ms > at_ms:
                    high = min(high, commit.first_seq - 1)
    return stood


def _with_skips(request: Ranging, known: Skips | None) -> Flow[tuple[Skips, Any]]:
    """The session's skips and the answer to the request; the skips are asked for with the first page alone."""
    if known is not None:
        (answer,) = yield [request]
        return known, answer
    answer, skips = yield [request, SkipsRequest(request.session)]
    return taken(skips), answer


def next_count(page: Sequence[Commit]) -> int:
    """How many commits to ask for next, so that a page holds about PAGE_BYTES."""
    return _count_by([commit.body for commit in page])


def _count_by(bodies: Sequence[bytes]) -> int:
    size = sum(map(len, bodies)) // len(bodies) + 64
    return max(1, min(PAGE_ENTRIES, PAGE_BYTES // size))


def first_pages_flow(readings: Sequence[ReadFlow]) -> Flow[list[Stretch | MusterError | None]]:
    """The first pages of many readings, side by side; an error is that of its reading alone."""
    return (yield from together([reading.next_page() for reading in readings]))


def head_flow(sessions: Sequence[str]) -> Flow[list[Head | None]]:
    """The heads of sessions."""
    for session in sessions:
        check_session(session)
    answers: list[Any] = yield [HeadRequest(session) for session in sessions]
    return [taken(answer) for answer in answers]


class RegistryFlow:
    """Enumerates sessions by partition and id, page by page."""

    def __init__(self, keyspace: Keyspace, after: str | None, page: int = 1000) -> None:
        self._partitions = keyspace.count
        self._partition = keyspace.partition_of(after) if after is not None else 0
        self._after = after
        self._page = page

    def next_page(self) -> Flow[list[str] | None]:
        """The next page, or None at the end."""
        while self._partition < self._partitions:
            (answer,) = yield [RegistryRequest(self._partition, self._after, self._page)]
            page: list[str] = taken(answer)
            if len(page) < self._page:
                self._partition, self._after = self._partition + 1, None
            else:
                self._after = page[-1]
            if page:
                return page
        return None


def together(flows: Sequence[Flow[T]]) -> Flow[list[T | MusterError]]:
    """Runs flows side by side: the requests of all travel together. A flow that fails gives its error in its place.

    A commit waits while a flow before it still searches its session, or it would overtake the commit searched for.
    """
    results: list[Any] = [None] * len(flows)
    waiting: dict[int, list[Request]] = {}
    for index, flow in enumerate(flows):
        _advance(index, flow, None, waiting, results)
    while waiting:
        indexes: list[int] = []
        searched: set[str] = set()
        for index in sorted(waiting):
            requests = waiting[index]
            searched |= {request.session for request in requests if isinstance(request, RangeRequest | StretchRequest)}
            if not any(isinstance(request, AppendRequest) and request.session in searched for request in requests):
                indexes.append(index)
        batch = [request for index in indexes for request in waiting[index]]
        answers = yield batch
        at = 0
        for index in indexes:
            count = len(waiting.pop(index))
            _advance(index, flows[index], answers[at : at + count], waiting, results)
            at += count
    return results


def _advance(
    index: int, flow: Flow[Any], answers: list[Any] | None, waiting: dict[int, list[Request]], results: list[Any]
) -> None:
    try:
        waiting[index] = next(flow) if answers is None else flow.send(answers)
    except StopIteration as done:
        results[index] = done.value
    except MusterError as error:
        results[index] = error


def taken(answer: Any) -> Any:
    """The answer, unless it is an error: that is raised."""
    if isinstance(answer, MusterError):
        raise answer
    return answer


def encode_append(append: Append, limits: Limits = DEFAULT_LIMITS) -> AppendRequest:
    """Checks and encodes one commit. Raises Refused; `append` was not sent then."""
    check_session(append.session)
    expected = append.expected
    if expected not in ("any", "new") and (not isinstance(expected, int) or isinstance(expected, bool) or expected < 0):
        raise Refused("EXPECTED_INVALID", f"{expected!r} is neither `any`, `new` nor a seq", session=append.session)
    body = encode_body(append.events, limits)
    return AppendRequest(
        append.session,
        expected,
        append.known,
        kinds_of(append.events),
        body,
        append.traceparent,
        token=append.token,
        heir=append.heir,
        ids=append.ids,
    )


def resolve_flow(doubt: AppendRequest) -> Flow[Receipt | Unsettled | None]:
    """What became of a commit whose append got no reply: its receipt, or None if it is not there and never will be.

    As long as the server may still take it, and it is not there, the answer is how long that will be.
    """
    # The clock first: what is not found after the deadline has passed was not written before it either.
    (now, head) = yield [TimeRequest(), HeadRequest(doubt.session)]
    after = _search_after(doubt)
    stands_at = taken(head).seq if taken(head) is not None else 0
    commit = yield from _search_flow(structs.replace(doubt, ids=()), after, stands_at)
    if commit is not None and (doubt.expected == "any" or commit.first_seq == after + 1):
        return repeated(commit)
    left = (doubt.not_after or 0) - taken(now)
    return Unsettled(left + 1) if left >= 0 else None


def repeated(commit: Commit) -> Receipt:
    """The receipt of a commit that was there already."""
    count = commit.last_seq - commit.first_seq + 1
    return Receipt(
        commit.session, commit.first_seq, commit.last_seq, commit.digest, commit.at_ms, appended=0, duplicates=count
    )


def _search_after(request: AppendRequest) -> int:
    """The seq after which the commit of a request may stand."""
    if request.expected == "any":
        return request.known.seq if request.known is not None else 0
    return 0 if request.expected == "new" else request.expected


def _search_flow(request: AppendRequest, after: int, to: int, seen: Position | None = None) -> Flow[Commit | None]:
    """The very commit of a request among those after seq `after`, or None. `seen` is what its producer saw there: what
    is archived the function cannot compare.

    Raises Conflict (PART_KNOWN) if it is not there, but events with ids that its producer gave them are; Damaged (FORK)
    if another commit stands at what was seen.
    """
    reading = ReadFlow(request.session, after=after - 1 if seen is not None else after, to=to)
    known: dict[str, int] = {}
    while (page := (yield from reading.next_page())) is not None:
        for commit in page:
            if seen is not None and commit.last_seq <= after:
                if commit.digest != (seen.digest or commit.digest) or commit.last_seq < after:
                    raise lost(request.session, "FORK", seen, Position(commit.last_seq, commit.digest))
                continue
            if commit.body == request.body:
                return commit
            if request.ids:
                known |= _seqs_of(request.ids, commit)
    if known:
        raise part_known(request.session, known)
    return None


def _seqs_of(ids: Sequence[str], commit: Commit) -> dict[str, int]:
    """Which of the ids a commit holds, and at which seqs; none if it cannot be read."""
    try:
        return {event.id: seq for seq, event in enumerate(commit.events, commit.first_seq) if event.id in ids}
    except Damaged:
        return {}


def _events_of(commit: Commit) -> Sequence[Event]:
    """The events of a commit, of which a discarded one may hold none that can be read. Raises Damaged."""
    try:
        return commit.events
    except Damaged:
        if commit.skipped:
            return ()
        raise


# -- leases and policies ---------------------------------------------------------------------------------------------


def lease_flow(session: str, agent: str, nonce: str, ttl_ms: int) -> Flow[str]:
    """Takes the lease of a session for an agent; returns its token. Raises Conflict (LEASE_HELD)."""
    check_session(session)
    check_actor(agent)
    if ttl_ms < 1:
        raise Refused("FIELD_INVALID", f"a lease of {ttl_ms} ms is over before it begins", session=session)
    (token,) = yield [LeaseRequest(session, agent, nonce, ttl_ms)]
    return str(taken(token))


def renew_flow(session: str, token: str, ttl_ms: int) -> Flow[None]:
    """Gives a lease more time. Raises Conflict (LEASE_LOST) if somebody took it or it was given back."""
    (held,) = yield [RenewRequest(session, token, ttl_ms)]
    if not taken(held):
        raise lease_lost(session, "")


def release_flow(session: str, token: str) -> Flow[None]:
    """Gives a lease back; one that is lost already is none of the caller's."""
    (held,) = yield [RenewRequest(session, token, None)]
    taken(held)


def policy_flow(session: str, policy: Policy) -> Flow[None]:
    """Says who may append to a session. Raises Conflict (LEASE_HELD)."""
    check_session(session)
    if policy not in ("any", "strict", "leased"):
        raise Refused("FIELD_INVALID", f"{policy!r} is no policy: there are any, strict, leased", session=session)
    (answer,) = yield [PolicyRequest(session, policy)]
    taken(answer)


def beat_flow(session: str, agent: str, silent_after_s: float) -> Flow[bool]:
    """An agent's sign of life. Raises Refused (SESSION_INVALID, ACTOR_INVALID, FIELD_INVALID), NotFound
    (SESSION_UNKNOWN).
    """
    check_session(session)
    check_actor(agent)
    if not 0 <= silent_after_s <= LONGEST_SILENCE_S:
        raise Refused("FIELD_INVALID", f"{silent_after_s} s of silence are not between 0 and {LONGEST_SILENCE_S}")
    (known,) = yield [BeatRequest(session, agent, int(silent_after_s * 1000))]
    return bool(taken(known))


# -- what all shells do with arguments and results -------------------------------------------------------------------


def with_ids(events: Sequence[Event], new_ids: Callable[[int], list[str]]) -> tuple[Event, ...]:
    """The events, each with an id; those that have none get new ones."""
    ids = [event.id for event in events]
    missing = ids.count("")
    if not missing:
        return tuple(events)
    new = new_ids(missing)
    if missing < len(ids):
        drawn = iter(new)
        new = [id or next(drawn) for id in ids]
    return tuple(
        [Event(one.type, id, one.actor, one.time, one.data, one.shape) for one, id in zip(events, new, strict=True)]
    )


def as_events(events: Event | Sequence[Event]) -> tuple[Event, ...]:
    """One event or many, as a tuple."""
    return (events,) if isinstance(events, Event) else tuple(events)


def as_position(session: str, known: Receipt | Position | int | None) -> Position | None:
    """What a producer says it knows of a session, as a position. Raises Refused (EXPECTED_INVALID) for another's
    receipt."""
    if isinstance(known, Receipt):
        if known.session != session:
            raise Refused("EXPECTED_INVALID", f"a receipt of session {known.session} says nothing of {session}")
        return None if known.is_spooled else known.position
    return Position(known) if isinstance(known, int) else known


def limited(items: Iterator[str], limit: int | None) -> Iterator[str]:
    """At most `limit` of the items."""
    for index, item in enumerate(items):
        if limit is not None and index >= limit:
            return
        yield item
