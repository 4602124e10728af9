"""What is told of a migration: how far it is, how long sessions were closed, whether the seals stand, what is stuck."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec import Struct

from domain.errors import MusterError
from projections.session_view import rfc3339
from workers.migration.ends import End, Ends
from workers.migration.moving import downtimes
from workers.migration.record import UNFENCED, Migration, Migrations, Move
from workers.migration.selecting import PAGE, pages, selected
from workers.migration.syncing import lag_of

SCHEMA: Final = "muster.migration/1"
#: How many of what went wrong are told in full.
TOLD: Final = 100


class Seals(Struct, frozen=True):
    """Whether the sources of the sessions that were moved are closed: how many were looked at, which are not."""

    checked: int
    lost: list[str]


def status(target: End, source: End | None, migration: Migration) -> dict[str, Any]:
    """How a migration stands, asked of both servers; of the target alone, where the source does not answer."""
    moves = dict(Migrations(target.store).moves(migration.id))
    states = Counter(move.state for move in moves.values())
    begun = [move for move in moves.values() if move.state in _BEGUN]
    sessions, lag, lag_s = _lag(Ends(source, target), migration, moves) if source else (len(moves), None, None)
    seals = seals_of(source, migration, moves) if source else Seals(0, [])
    failed = {session: move.error for session, move in sorted(moves.items()) if move.error is not None}
    events = sum(move.seq for move in begun)
    return {
        "schema": SCHEMA,
        "task": migration.id,
        "kind": migration.kind,
        "state": migration.state,
        "stuck": migration.is_stuck,
        "source_answers": source is not None,
        "sessions": sessions,
        "copied": len(begun),
        "verified": sum(move.verified for move in begun),
        "moved": states["moved"],
        "failed": states["failed"] + sum(move.state == "sealing" and move.error is not None for move in moves.values()),
        "sealed": states["sealing"],
        "back": states["back"],
        "elsewhere": states["elsewhere"],
        "events": events,
        "lag_events": lag,
        "lag_s": lag_s,
        "conflicts": {session: move.seq for session, move in sorted(moves.items()) if move.state == "conflict"},
        "eta_s": _eta_s(migration, events, lag),
        "downtime_ms": downtimes(moves.values()),
        "seal_proof": migration.proof or None,
        "cursors_waiting": migration.cursors_waiting,
        "seals": msgspec.to_builtins(seals),
        "from": migration.source,
        "to": migration.target,
        "selection": migration.selection,
        "holder": migration.holder,
        "who": migration.who,
        "began_at": rfc3339(migration.began),
        "beat_at": rfc3339(migration.beat),
        "ended_at": rfc3339(migration.ended),
        "error": migration.error,
        "errors": dict(list(failed.items())[:TOLD]),
    }


def counted(target: End, migration: Migration, sessions: Iterable[str]) -> dict[str, int]:
    """Of these sessions alone what `status` tells by these names."""
    found = Migrations(target.store).of(migration.id, sorted(set(sessions)))
    states = Counter(move.state if move is not None else "new" for move in found)
    return {
        "sessions": states.total() - states["back"] - states["elsewhere"],
        "copied": sum(states[state] for state in _BEGUN),
        "moved": states["moved"],
    }


def is_well(told: dict[str, Any]) -> bool:
    """Whether nobody needs to look at it."""
    bad = told["stuck"] or told["failed"] or told["conflicts"] or told["state"] == UNFENCED or told["seals"]["lost"]
    bad = bad or told["cursors_waiting"]
    return not (bad or (told["error"] and not told["holder"]))


def seals_of(source: End, migration: Migration, moves: dict[str, Move]) -> Seals:
    """Whether the seals stand."""
    lost: list[str] = []
    moved = sorted(session for session, move in moves.items() if move.state == "moved")
    for page in pages(moved, PAGE):
        heads = source.log.heads(page)
        holds = source.ask([["HGET", source.keyspace.of(session).hold(session), "moved_task"] for session in page])
        for session, head, owner in zip(page, heads, holds, strict=True):
            if head is None or not head.is_elsewhere or owner != migration.id.encode():
                lost.append(session)
    return Seals(len(moved), lost)


def _lag(ends: Ends, migration: Migration, moves: dict[str, Move]) -> tuple[int, int, float | None]:
    """How many sessions are meant, how many of their events are not on the target; and, of a standby, how old the
    oldest of these is, in seconds.
    """
    if migration.kind == "sync":
        lagging = lag_of(ends, migration.id)
        return len(moves), lagging.events, lagging.seconds
    count = lag = 0
    for page in pages(_meant(ends, migration, moves), PAGE):
        for session, head in zip(page, ends.source.log.heads(page), strict=True):
            move = moves.get(session, _NEW)
            if move.state in ("back", "elsewhere"):
                continue
            count += 1
            if move.state != "moved" and head is not None:
                lag += max(0, head.seq - move.seq)
    return count, lag, None


_NEW: Final = Move("new")
#: States of a session of which there is something on the target.
_BEGUN: Final = frozenset({"copied", "sealing", "moved", "synced", "opened"})


def _meant(ends: Ends, migration: Migration, moves: dict[str, Move]) -> Iterator[str]:
    """What is selected, and what was begun with."""
    met: set[str] = set()
    for session in _selected(ends, migration):
        met.add(session)
        yield session
    yield from sorted(moves.keys() - met)


def _selected(ends: Ends, migration: Migration) -> Iterable[str]:
    try:
        yield from selected(ends.source, migration.selection)
    except MusterError as error:
        if error.code != "SESSION_UNKNOWN":
            raise


def _eta_s(migration: Migration, events: int, lag: int | None) -> float | None:
    """How long copying goes on at the pace so far; None where nothing is copied."""
    took_s = (migration.beat - migration.began) / 1000
    if migration.holder is None or not events or took_s <= 0 or lag is None:
        return None
    return round(lag * took_s / events, 1)
