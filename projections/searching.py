"""Finding sessions by what they are: the filter, and the way through the indexes to the sessions that may match.

Theory of operation. The first round trip counts, in every partition, how many sessions meet each condition. The
smallest of these sets is gone through, page by page; what it gives is looked up in the indexes of the other conditions,
and only what is in all of them is read. So a page costs what it holds, however many sessions there are; only where each
condition is met by many and all of them by few, many are looked up.

Sets of one value are in the order of partitions and ids, those of a time in the order of that time. The order is chosen
with the first page, and the cursor holds it together with the place, so a later page goes on where the first one ended,
whatever was added meanwhile. Indexes only propose: `Views.find` looks at each session's view again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge as merged
from itertools import islice
from typing import Any, Final

from msgspec import Struct

from domain.errors import Refused
from domain.events import is_identifier, shortened
from domain.impact import SEVERITIES, units
from domain.log.keys import PartitionKeys
from domain.session import BROKEN, COMPLETED, COORDINATING, ENTERS, EXPIRED, MAX_LABEL_LENGTH, PRIORITIES, WORKING
from projections import indexing
from projections.indexing import Entries
from projections.store import ProjectionStore

STATES: Final = (WORKING, BROKEN, COORDINATING, COMPLETED, EXPIRED)
#: How many sessions are looked up in one round trip.
PAGE: Final = 256
#: How many are looked up at a time, of many partitions together, where there are several conditions.
LOOKED_UP: Final = 1024
#: A time is gone through instead of values only where it is met by so much fewer.
CLEARLY_FEWER: Final = 4
_BY_ID: Final = "id"

Values = str | Sequence[str]


class Filter(Struct, frozen=True, kw_only=True):
    """Which sessions are meant: those that meet every condition. Several values of one field: any of them.

    Times are server ms, `after` inclusive and `before` exclusive. `transition` is a pair of states ("working>broken")
    or of events that lead to a state ("test_pass>broke"). `severity` and `perf_below` mean any event of the session.
    """

    state: Values = ()
    agent: Values = ()
    entity: Values = ()
    tag: Values = ()
    priority: Values = ()
    outcome: Values = ()
    transition: Values = ()
    severity: Values = ()
    quarantined: bool = False
    parked: bool = False
    started_after: int | None = None
    started_before: int | None = None
    last_after: int | None = None
    last_before: int | None = None
    completed_after: int | None = None
    completed_before: int | None = None
    perf_below: float | None = None


class Page(Struct, frozen=True):
    """A page of what was asked for, each with a `cursor` of its own, and the cursor after which the next page begins;
    None: there is none.
    """

    found: list[dict[str, Any]]
    cursor: str | None


class OneOf(Struct, frozen=True):
    """A condition: the session has one of these values (as they stand before its id in the index)."""

    values: tuple[str, ...]

    def holds(self, entries: Entries, is_quarantined: bool) -> bool:
        """Whether a session of which this is indexed meets it."""
        return any(value in entries.values or (is_quarantined and value == _QUARANTINED) for value in self.values)


class Between(Struct, frozen=True):
    """A condition: a score is in these bounds, both inclusive."""

    name: str
    low: int
    high: int

    def holds(self, entries: Entries, is_quarantined: bool) -> bool:
        """Whether a session of which this is indexed meets it."""
        score = entries.scores.get(self.name)
        return score is not None and self.low <= score <= self.high


class Parked(Struct, frozen=True):
    """A condition: the session is parked."""

    def holds(self, entries: Entries, is_quarantined: bool) -> bool:
        """No view says so."""
        return True


class Listed(Struct, frozen=True):
    """No condition: every session."""

    def holds(self, entries: Entries, is_quarantined: bool) -> bool:
        """All do."""
        return True


Condition = OneOf | Between | Parked | Listed

_QUARANTINED: Final = "quarantined\0"
#: The highest score there can be: of times and of what is above all times.
_HIGHEST: Final = 2**53


class Candidate(Struct, frozen=True):
    """A session that the indexes propose, and the cursor after it."""

    session: str
    cursor: str


def conditions(filter: Filter) -> list[Condition]:
    """The conditions of a filter. Raises Refused (USAGE) for values that no session can have."""
    found: list[Condition] = []
    for field, known in (
        ("state", STATES), ("agent", None), ("entity", None), ("tag", None), ("priority", PRIORITIES),
        ("outcome", None), ("severity", SEVERITIES),
    ):  # fmt: skip
        values = _values(filter, field)
        if known is not None and (strange := [value for value in values if value not in known]):
            raise Refused("USAGE", f"a {field} is one of {', '.join(known)}, not {shortened(strange[0])}")
        if field == "outcome":
            values = tuple(value[:MAX_LABEL_LENGTH] for value in values)
        if values:
            found.append(OneOf(tuple(f"{field}\0{value}" for value in values)))
    if transitions := _values(filter, "transition"):
        found.append(OneOf(tuple(f"{_kind_of_pair(pair)}\0{pair}" for pair in transitions)))
    if filter.quarantined:
        found.append(OneOf((_QUARANTINED,)))
    if filter.parked:
        found.append(Parked())
    for name in ("started", "last", "completed"):
        after, before = getattr(filter, f"{name}_after"), getattr(filter, f"{name}_before")
        if after is not None or before is not None:
            found.append(Between(name, after or 0, _HIGHEST if before is None else before - 1))
    if filter.perf_below is not None:
        below = units(filter.perf_below)
        if below is None:
            raise Refused("USAGE", "`perf_below` must be a number")
        found.append(Between("perf", 0, below + indexing.PERF_ZERO - 1))
    return found


def pair_of(transition: str) -> tuple[str, str]:
    """The two sides of a transition. Raises Refused (USAGE)."""
    before, _, after = transition.partition(">")
    if {before, after} <= set(STATES) or {before, after} <= set(ENTERS):
        return before, after
    raise Refused(
        "USAGE",
        f"a transition is two states ({', '.join(STATES)}) or two events that lead to one ({', '.join(ENTERS)}) with > "
        f"between them, not {shortened(transition)}",
    )


def _kind_of_pair(transition: str) -> str:
    return "transition" if set(pair_of(transition)) <= set(STATES) else "type_pair"


def _values(filter: Filter, field: str) -> tuple[str, ...]:
    given = getattr(filter, field)
    values = (given,) if isinstance(given, str) else tuple(given)
    for value in values:
        if not isinstance(value, str) or not value or indexing.SEPARATOR in value:
            raise Refused("USAGE", f"a {field} is a text without NUL, not {shortened(value)}")
    return tuple(dict.fromkeys(values))


# -- looking -----------------------------------------------------------------------------------------------------------


class Search:
    """One search through the indexes. Raises Refused (USAGE) for a filter or a cursor that is none."""

    def __init__(self, store: ProjectionStore, filter: Filter) -> None:
        self._store = store
        self._client = store.client
        self.conditions = conditions(filter)

    def count(self) -> int:
        """How many sessions there are by the indexes. Views are not read."""
        counts = self._counts()
        one = self.conditions[0] if len(self.conditions) == 1 else None
        if not self.conditions or (one is not None and not (isinstance(one, OneOf) and len(one.values) > 1)):
            return sum(min(partition.values()) for partition in counts)
        return sum(1 for _ in self.candidates(None, PAGE))

    def candidates(self, after: str | None, expected: int) -> Iterator[Candidate]:
        """The sessions that the indexes propose after a cursor, in order; about so many will be asked for."""
        order, place = _parsed(after) if after is not None else ("", "")
        counts = self._counts()
        order = order or self._order(counts)
        if order == _BY_ID:
            return self._by_id(counts, place, expected)
        by = next((one for one in self.conditions if isinstance(one, Between) and one.name == order), None)
        if by is None:
            raise _no_cursor(after or "")
        return self._by_score(by, place, expected)

    def _order(self, counts: Sequence[dict[Condition, int]]) -> str:
        """The order in which fewest sessions have to be looked at."""
        totals = {one: sum(by[one] for by in counts) for one in counts[0]}
        scores = {one: total for one, total in totals.items() if isinstance(one, Between)}
        values = [total for one, total in totals.items() if one not in scores]
        if not scores or (values and min(values) <= CLEARLY_FEWER * min(scores.values())):
            return _BY_ID
        fewest: Condition = min(scores, key=lambda one: scores[one])
        assert isinstance(fewest, Between)
        return fewest.name

    def _counts(self) -> list[dict[Condition, int]]:
        """How many sessions meet each condition, by partition; at most, where it names several values."""
        asked: Sequence[Condition] = self.conditions or [Listed()]
        pipe = self._client.pipeline(transaction=False)
        for keys in self._store.keyspace.partitions:
            for condition in asked:
                match condition:
                    case OneOf(values):
                        for value in values:
                            pipe.zlexcount(keys.session_index, f"[{value}\0", f"({value}\1")
                    case Between(name, low, high):
                        pipe.zcount(indexing.score_index(keys, name), low, high)
                    case Parked():
                        pipe.hlen(keys.parked(self._store.owned))
                    case Listed():
                        pipe.zcard(keys.sessions)
        replies = iter(pipe.execute(raise_on_error=False))
        return [
            {
                one: sum(_count(next(replies)) for _ in range(len(one.values) if isinstance(one, OneOf) else 1))
                for one in asked
            }
            for _ in self._store.keyspace.partitions
        ]

    # -- in the order of ids -----------------------------------------------------------------------------------------

    def _by_id(self, counts: Sequence[dict[Condition, int]], after: str, expected: int) -> Iterator[Candidate]:
        begin = self._store.keyspace.partition_of(after) if after else 0
        left = [
            (partition, after if partition == begin else "")
            for partition, by in enumerate(counts)
            if partition >= begin and all(by.values())
        ]
        while left:
            # Of many conditions' candidates few may be left: then more are looked up at once.
            group, room = [], expected if len(self.conditions) <= 1 else max(expected, LOOKED_UP)
            while left and room > 0:
                group.append(left.pop(0))
                there = self._drivers(counts[group[-1][0]])[1]
                room = room - there if there < PAGE else 0  # what has more than a page goes on by itself
            pages = self._pages(counts, group, PAGE if len(self.conditions) > 1 else min(PAGE, expected))
            tested = self._tested({partition: page for (partition, _), (page, _) in zip(group, pages, strict=True)})
            for at, ((partition, _), (page, goes_on)) in enumerate(zip(group, pages, strict=True)):
                for session in page:
                    if session in tested[partition]:
                        yield Candidate(session, f"{_BY_ID}:{session}")
                if goes_on:
                    # What was read of later partitions is read again in its turn: order goes before thrift.
                    left = [(partition, page[-1]), *group[at + 1 :], *left]
                    break

    def _drivers(self, by: dict[Condition, int]) -> tuple[Condition, int]:
        """The smallest set of a partition that is in the order of ids."""
        return min(((one, total) for one, total in by.items() if not isinstance(one, Between)), key=lambda at: at[1])

    def _pages(
        self, counts: Sequence[dict[Condition, int]], group: Sequence[tuple[int, str]], size: int
    ) -> list[tuple[list[str], bool]]:
        """A page of sessions after a place, of each partition, and whether there may be more, in one round trip."""
        drivers = [self._drivers(counts[partition])[0] for partition, _ in group]
        pipe = self._client.pipeline(transaction=False)
        for (partition, after), driver in zip(group, drivers, strict=True):
            keys = self._store.keys(partition)
            match driver:
                case OneOf(values):
                    for value in values:
                        low = f"({value}\0{after}" if after else f"[{value}\0"
                        pipe.zrangebylex(keys.session_index, low, f"({value}\1", start=0, num=size)
                case Parked():
                    pipe.hkeys(keys.parked(self._store.owned))
                case _:
                    pipe.zrangebylex(keys.sessions, f"({after}" if after else "-", "+", start=0, num=size)
        replies = iter(pipe.execute(raise_on_error=False))
        pages = []
        for (_, after), driver in zip(group, drivers, strict=True):
            ways = len(driver.values) if isinstance(driver, OneOf) else 1
            read = [_names(next(replies)) for _ in range(ways)]
            if isinstance(driver, Parked):
                waiting = sorted(name for name in read[0] if name > after and is_identifier(name))
                pages.append((waiting[:size], len(waiting) > size))
                continue
            # Where one value has more, nothing is known of the others beyond what was read of it.
            ends = [names[-1] for names in read if len(names) >= size]
            names = sorted({name for names in read for name in names if not ends or name <= min(ends)})
            pages.append((names, bool(ends)))
        return pages

    # -- in the order of a score -------------------------------------------------------------------------------------

    def _by_score(self, by: Between, place: str, expected: int) -> Iterator[Candidate]:
        at, _, after = place.partition(":")
        if place and not (at.isdigit() and after):
            raise _no_cursor(f"{by.name}:{place}")
        low = int(at) if place else by.low
        size = min(PAGE, 8 + 2 * expected // self._store.keyspace.count)
        first = self._client.pipeline(transaction=False)
        for keys in self._store.keyspace.partitions:
            first.zrangebyscore(
                indexing.score_index(keys, by.name),
                low,
                by.high,
                start=0,
                num=size,
                withscores=True,
                score_cast_func=int,
            )
        replies = first.execute(raise_on_error=False)
        ways = [
            self._in_order(keys, by, _scored(reply), size)
            for keys, reply in zip(self._store.keyspace.partitions, replies, strict=True)
        ]
        in_order = (one for one in merged(*ways) if not place or one > (low, after))
        while page := list(islice(in_order, max(16, min(PAGE, expected)))):
            sessions: dict[int, list[str]] = {}
            for _, session in page:
                sessions.setdefault(self._store.keyspace.partition_of(session), []).append(session)
            tested = self._tested(sessions)
            for score, session in page:
                if session in tested[self._store.keyspace.partition_of(session)]:
                    yield Candidate(session, f"{by.name}:{score}:{session}")

    def _in_order(
        self, keys: PartitionKeys, by: Between, page: list[tuple[int, str]], size: int
    ) -> Iterator[tuple[int, str]]:
        """A partition's sessions by score and id, of which the first page is read."""
        key, last = indexing.score_index(keys, by.name), (-1, "")
        while page:
            fresh = [one for one in page if one > last]
            yield from fresh
            if len(page) < size:
                return
            # From the last score on once more: who is counted over cannot be trusted to be there still.
            last, size = page[-1], PAGE if fresh else 2 * size
            reply = self._client.zrangebyscore(
                key, last[0], by.high, start=0, num=size, withscores=True, score_cast_func=int
            )
            page = _scored(reply)

    # -- whether the other conditions are met too --------------------------------------------------------------------

    def _tested(self, sessions: dict[int, list[str]]) -> dict[int, set[str]]:
        """Those of the sessions, by partition, that are indexed as all conditions ask."""
        asked = self.conditions
        if len(asked) <= 1:  # by it they were found
            return {partition: set(names) for partition, names in sessions.items()}
        pipe = self._client.pipeline(transaction=False)
        for partition, names in sessions.items():
            keys = self._store.keys(partition)
            for one in asked if names else ():
                match one:
                    case OneOf(values):
                        pipe.zmscore(keys.session_index, [f"{value}\0{name}" for name in names for value in values])
                    case Between(name, _, _):
                        pipe.zmscore(indexing.score_index(keys, name), names)
                    case _:
                        pipe.hmget(keys.parked(self._store.owned), names)
        replies = iter(pipe.execute(raise_on_error=False))
        found: dict[int, set[str]] = {}
        for partition, names in sessions.items():
            met = [_met(one, next(replies), len(names)) for one in asked] if names else []
            found[partition] = {name for name, *all_met in zip(names, *met, strict=True) if all(all_met)}
        return found


def _met(one: Condition, reply: Any, count: int) -> list[bool]:
    """Whether sessions meet a condition, by what was looked up of it."""
    if isinstance(reply, Exception):
        return [False] * count
    match one:
        case OneOf(values):
            ways = len(values)
            return [any(score is not None for score in reply[at * ways : (at + 1) * ways]) for at in range(count)]
        case Between(_, low, high):
            return [score is not None and low <= score <= high for score in reply]
        case _:
            return [reason is not None for reason in reply]


def _names(reply: Any) -> list[str]:
    """The sessions of entries; none where it is no index."""
    if isinstance(reply, Exception):
        return []
    return [indexing.parted(entry.decode("utf-8", "replace"))[1] for entry in reply]


def _scored(reply: Any) -> list[tuple[int, str]]:
    return [] if isinstance(reply, Exception) else [(score, name.decode("utf-8", "replace")) for name, score in reply]


def _count(reply: Any) -> int:
    return 0 if isinstance(reply, Exception) else int(reply)


def _parsed(cursor: str) -> tuple[str, str]:
    """The order that a cursor goes on in, and its place."""
    order, _, place = cursor.partition(":")
    if not place or order not in (_BY_ID, *indexing.SCORES):
        raise _no_cursor(cursor)
    return order, place


def _no_cursor(cursor: str) -> Refused:
    return Refused("USAGE", f"{shortened(cursor)} is no cursor of a page of this filter")
