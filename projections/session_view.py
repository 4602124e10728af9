"""The view of a session, and the checkpoints along its way.

The view is the fold of the session's log and nothing else: no wall clock, no worker's name, nothing that depends on
when or where it was built.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from msgspec import structs

from domain.codec import Commit, genesis
from domain.errors import Damaged
from domain.events import Event, Gist
from domain.impact import SEVERITIES, Impacts, as_number
from domain.invariants import fold, fold_lawful, lawful
from domain.log.uncollected import uncollected
from domain.session import FEW, Session
from domain.stretch import Stretch
from projections.sealed import Seal, seal, version_of

#: The projection that builds session views, checkpoints and agent totals in one step.
NAME: Final = "sessions"
#: Raised whenever the same log would give other bytes.
VERSION: Final = 2

#: A checkpoint is kept at the end of a commit that crosses a multiple of this seq …
CHECKPOINT_INTERVAL: Final = 50
#: … or holds one of these.
CHECKPOINT_TYPES: Final = frozenset({"broke", "handoff", "completed"})
#: How many checkpoints a session keeps, the newest ones.
CHECKPOINTS_KEPT: Final = 4

_SEAL = Seal(VERSION, Session)


def initial(session: str) -> Session:
    """A session before its first event."""
    return Session(session, digest=genesis(session))


def encode(view: Session) -> bytes:
    """The stored bytes of a view; a checkpoint's are the same."""
    return seal(VERSION, view)


def decode(stored: bytes) -> Session:
    """The view. Raises Damaged (VIEW_UNREADABLE)."""
    view: Session = _SEAL.open(stored)
    return view


def readable(stored: bytes | None, session: str) -> Session | None:
    """The session's view, or None where there is none that can be trusted; another session's cannot."""
    if stored is None:
        return None
    try:
        view = decode(stored)
    except Damaged:
        return None
    return view if view.session == session else None


def is_older(stored: bytes | None) -> bool:
    """Whether an older release built these bytes: no damage, but to be built again."""
    version = None if stored is None else version_of(stored)
    return version is not None and version < VERSION


def adds_up(view: Session) -> bool:
    """Whether a view counts as many events as its seq says: one that does not is a fold of no history at all."""
    return sum(view.event_types.values()) == view.seq


def is_checkpoint(commit: Commit) -> bool:
    """Whether a checkpoint is due at the end of this commit; a function of the log alone."""
    events = () if commit.skipped else commit.gists if commit.gists is not None else commit.events
    return _is_due(commit.first_seq, commit.last_seq, events)


def _is_due(first_seq: int, last_seq: int, events: Iterable[Event | Gist]) -> bool:
    if last_seq // CHECKPOINT_INTERVAL > (first_seq - 1) // CHECKPOINT_INTERVAL:
        return True
    return not CHECKPOINT_TYPES.isdisjoint([event.type for event in events])


class Folding:
    """A fold in progress: the view so far, and the newest checkpoints on the way."""

    def __init__(self, view: Session) -> None:
        self.view = view
        self.checkpoints: dict[int, bytes] = {}

    def advance(self, commits: Iterable[Commit | Stretch]) -> None:
        """Folds commits until one breaks a law: then Damaged is raised, and the view stands before that commit."""
        for part in commits:
            if isinstance(part, Stretch) and len(part) > FEW and self._is_taken(part):
                continue
            for commit in part if isinstance(part, Stretch) else (part,):
                fold(self.view, commit)
                if is_checkpoint(commit):
                    self._keep_checkpoint()

    def _is_taken(self, stretch: Stretch) -> bool:
        """Folds a stretch at a stroke, if that can be done."""
        with uncollected():
            gists = lawful(self.view, stretch)
            if gists is not None:
                self._take(stretch, gists)
        return gists is not None

    def _take(self, stretch: Stretch, gists: list[list[Gist]]) -> None:
        """Folds a lawful stretch, and makes those checkpoints that are kept in the end."""
        begin, length = 0, len(stretch)
        lasts, counts = stretch.lasts, stretch.counts
        due = (at for at in reversed(range(length)) if _is_due(lasts[at] - counts[at] + 1, lasts[at], gists[at]))
        for at in reversed(list(islice(due, CHECKPOINTS_KEPT))):
            fold_lawful(self.view, stretch, gists, begin, at + 1)
            self._keep_checkpoint()
            begin = at + 1
        if begin < length:
            fold_lawful(self.view, stretch, gists, begin, length)

    def _keep_checkpoint(self) -> None:
        self.checkpoints[self.view.seq] = encode(self.view)
        if len(self.checkpoints) > CHECKPOINTS_KEPT:
            del self.checkpoints[min(self.checkpoints)]


def document(view: Session, *, quarantined: dict[str, Any] | None = None, digest: bool = True) -> dict[str, Any]:
    """The view as readers get it: plain JSON, times as RFC 3339 in UTC, nothing that depends on when it is asked."""
    return {
        "session": view.session,
        "seq": view.seq,
        "digest": view.digest if digest else None,
        "state": view.state,
        "agents": {
            agent: {
                "events": part.events,
                "first_seq": part.first_seq,
                "last_seq": part.last_seq,
                "present": part.present,
                **impacts_document(part.impacts),
            }
            for agent, part in sorted(view.agents.items())
        },
        "event_types": dict(sorted(view.event_types.items())),
        "entities": sorted(view.entities),
        "first_actor": view.first_actor,
        "last_type": view.last_type,
        "handed_off_by": view.handed_off_by,
        "started_at": rfc3339(view.started_at),
        "last_at": rfc3339(view.last_at),
        "forked_from": None if view.forked_from is None else structs.asdict(view.forked_from),
        "quarantined": quarantined,
        "tags": sorted(view.tags),
        "priority": view.priority,
        "outcome": view.outcome,
        "completed_at": rfc3339(view.completed_at),
        "transitions": dict(sorted(view.transitions.items())),
        "type_pairs": dict(sorted(view.type_pairs.items())),
        "open_breaks": list(view.open_breaks),
        "last_handoff": view.last_handoff or None,
        "last_checkpoint": view.last_checkpoint or None,
        "ttl_s": view.ttl_s or None,
        "expires_at": rfc3339(view.expiring_at),
    }


def impacts_document(impacts: Impacts | None) -> dict[str, Any]:
    """What was said of impacts, as readers get it."""
    said = impacts or Impacts()
    return {
        "severities": {severity: said.severities[severity] for severity in SEVERITIES if severity in said.severities},
        "perf_delta": as_number(said.perf_delta),
        "perf_lowest": as_number(said.lowest),
    }


def rfc3339(at_ms: int) -> str | None:
    """Server time in milliseconds as text; None for a session without events."""
    if at_ms == 0:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
