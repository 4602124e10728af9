"""What a session adds to the indexes and statistics of its partition, as a function of its view alone.

One sorted set holds an entry for each thing that sessions are asked for by: `<field>\\0<value>\\0<session>`, all scores
0. So the entries of one value lie side by side, in the order of sessions; they are counted without being read, and
whether a session has one is a look-up. What is asked for by more or less has a sorted set of its own, by score.
Statistics are sums. All of it moves in the step that replaces the view, by the difference between what the old view
gave and what the new one gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from domain.errors import Damaged
from domain.impact import MOST, SCALE
from domain.log.keys import PartitionKeys
from domain.session import COMPLETED, OPEN_GATE, Session
from projections.sealed import Seal, seal

#: Raised whenever the same view would give another part of the statistics.
VERSION: Final = 1
#: Fields by which sessions are found.
FIELDS: Final = (
    *("state", "agent", "entity", "tag", "priority", "outcome", "transition", "type_pair", "severity", "quarantined"),
)
#: Scores by which they are found: server ms, and the lowest `perf_delta` in millionths, raised to be never below 0. Of
#: a session that may end by idling there is one of these: `idle` (when something came last), `until` (how long it may
#: idle, by its own `extended`), or `expiring` (when it expires, as it was told).
SCORES: Final = ("started", "last", "completed", "perf", "idle", "until", "expiring")
PERF_ZERO: Final = MOST * SCALE
SEPARATOR: Final = "\0"
#: Sessions of so many agents and more are counted as one kind.
MANY_AGENTS: Final = 10
#: How many entries are written by one command of a step.
CHUNK: Final = 1000


class Entries(Struct, frozen=True):
    """What is indexed of a session: its entries, without the session's id, and its scores by name."""

    values: frozenset[str]
    scores: dict[str, int]


class Given(Struct, frozen=True):
    """What a session adds to its partition, beside the totals of its agents."""

    entries: Entries
    sums: dict[str, int]


NO_ENTRIES: Final = Entries(frozenset(), {})


def entries(view: Session) -> Entries:
    """What is indexed of a session. A value with the separator in it is not."""
    if not view.seq:
        return NO_ENTRIES
    values = {f"state\0{view.state}"}
    values.update([f"agent\0{agent}" for agent in view.agents])
    if view.entities:
        values.update([f"entity\0{entity}" for entity in view.entities if SEPARATOR not in entity])
    if view.transitions:
        values.update([f"transition\0{pair}" for pair in view.transitions])
    if view.type_pairs:
        values.update([f"type_pair\0{pair}" for pair in view.type_pairs])
    if view.tags:
        values.update([f"tag\0{tag}" for tag in view.tags if SEPARATOR not in tag])
    if view.priority is not None:
        values.add(f"priority\0{view.priority}")
    if view.outcome is not None and SEPARATOR not in view.outcome:
        values.add(f"outcome\0{view.outcome}")
    scores = {"started": view.started_at, "last": view.last_at}
    if view.completed_at > 0:
        scores["completed"] = view.completed_at
    if view.gate == OPEN_GATE:
        since = view.active_at or view.started_at
        if view.expiring_at:
            scores["expiring"] = view.expiring_at
        elif view.ttl_s:
            scores["until"] = since + 1000 * view.ttl_s
        else:
            scores["idle"] = since
    said = [part.impacts for part in view.agents.values() if part.impacts is not None]
    if said:
        values.update([f"severity\0{severity}" for impacts in said for severity in impacts.severities])
        lowest = [impacts.lowest for impacts in said if impacts.lowest is not None]
        if lowest:
            scores["perf"] = min(lowest) + PERF_ZERO
    return Entries(frozenset(values), scores)


def sums(view: Session) -> dict[str, int]:
    """What a session adds to the statistics of its partition; all of it is added and subtracted."""
    if not view.seq:
        return {}
    found = {
        "sessions": 1,
        "events": view.seq,
        f"state {view.state}": 1,
        f"length {view.seq.bit_length()}": 1,
        f"agents {min(len(view.agents), MANY_AGENTS)}": 1,
    }
    if view.priority is not None:
        found[f"priority {view.priority}"] = 1
    if breaks := view.event_types.get("broke"):
        found["breaks"] = breaks
    if view.state == COMPLETED:
        took_ms = view.completed_at - view.started_at
        found |= {"took_ms": took_ms, f"took {(took_ms // 1000).bit_length()}": 1}
    for part in view.agents.values():
        if part.impacts is not None:
            for severity, count in part.impacts.severities.items():
                found[f"severity {severity}"] = found.get(f"severity {severity}", 0) + count
            found["perf_delta"] = found.get("perf_delta", 0) + part.impacts.perf_delta
    return found


def given(view: Session) -> Given:
    """What a session adds to its partition as it stands."""
    return Given(entries(view), sums(view))


# -- statistics --------------------------------------------------------------------------------------------------------


def plus(one: Mapping[str, int], more: Mapping[str, int], sign: int = 1) -> dict[str, int]:
    """Sums, added or subtracted by name; what comes to 0 is left out."""
    found = dict(one)
    add(found, more, sign)
    return {name: value for name, value in found.items() if value}


def add(into: dict[str, int], more: Mapping[str, int], sign: int = 1) -> None:
    """Adds or subtracts sums by name."""
    for name, value in more.items():
        into[name] = into.get(name, 0) + sign * value


def encode_statistics(found: Mapping[str, int]) -> bytes:
    """The stored bytes of a partition's statistics."""
    return seal(VERSION, dict(found))


def readable_statistics(stored: bytes | None) -> dict[str, int] | None:
    """A partition's statistics, or None where there are none that can be trusted."""
    if stored is None:
        return None
    try:
        found: dict[str, int] = _SEAL.open(stored)
    except Damaged:
        return None
    return found


_SEAL = Seal(VERSION, dict[str, int])


def score_index(keys: PartitionKeys, name: str) -> str:
    """The index of a score, by its name."""
    return {
        "started": keys.started_index,
        "last": keys.last_index,
        "completed": keys.completed_index,
        "perf": keys.perf_index,
        "idle": keys.idle_index,
        "until": keys.until_index,
        "expiring": keys.expiring_index,
    }[name]


# -- entries -----------------------------------------------------------------------------------------------------------


def member(value: str, session: str) -> str:
    """An entry as it stands in the index."""
    return f"{value}{SEPARATOR}{session}"


def quarantined(session: str) -> str:
    """The entry of a quarantined session: written in the step that closes it, and by its head alone."""
    return f"quarantined{SEPARATOR}{SEPARATOR}{session}"


def parted(entry: str) -> tuple[str, str]:
    """An entry's value and session."""
    value, _, session = entry.rpartition(SEPARATOR)
    return value, session


def fingerprints(session: str, values: Iterable[str], scores: Iterable[Any]) -> list[int]:
    """The fingerprints of all that is indexed of a session, by the names of its scores, or by names and scores."""
    return [hash(("", f"{value}\0{session}")) for value in values] + [hash((name, session)) for name in scores]


def fingerprint(entry: str, name: str) -> int:
    """What tells an entry from others within this process, in less space; `name` is that of its score, or ""."""
    return hash((name, entry))


class IndexMoves:
    """What has to be written into the indexes of a partition so that they follow the views of sessions."""

    def __init__(self, keys: PartitionKeys) -> None:
        self._keys = keys
        self._scores = {name: score_index(keys, name) for name in SCORES}
        self._added: dict[str, list[Any]] = {}
        self._removed: dict[str, list[str]] = {}

    def move(self, session: str, before: Entries, after: Entries) -> None:
        """Takes in a session whose view is replaced."""
        index = self._keys.session_index
        if after.values != before.values:
            for value in after.values - before.values:
                self.add(index, member(value, session), 0)
            for value in before.values - after.values:
                self.remove(index, member(value, session))
        for name, score in after.scores.items():
            if before.scores.get(name) != score:
                self.add(self._scores[name], session, score)
        for name in before.scores:
            if name not in after.scores:
                self.remove(self._scores[name], session)

    def add(self, key: str, entry: str, score: int) -> None:
        """Has an entry written."""
        self._added.setdefault(key, []).extend((score, entry))

    def remove(self, key: str, entry: str) -> None:
        """Has an entry taken away."""
        self._removed.setdefault(key, []).append(entry)

    def writes(self) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
        """Commands, each with its key and arguments."""
        for key, removed in sorted(self._removed.items()):
            for chunk in _chunks(removed, CHUNK):
                yield "ZREM", key, chunk
        for key, added in sorted(self._added.items()):
            for chunk in _chunks(added, 2 * CHUNK):
                yield "ZADD", key, chunk


def _chunks(items: Sequence[Any], size: int) -> Iterable[tuple[Any, ...]]:
    return (tuple(items[at : at + size]) for at in range(0, len(items), size))
