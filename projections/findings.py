"""Findings: every way in which stored state can break a law, by code; what one says, and what to do about it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from msgspec import Struct

from projections import session_view

SCHEMA: Final = "muster.finding/1"


class Kind(NamedTuple):
    """What a code of a finding says: which part drifted, how bad that is, and what to do."""

    kind: str
    severity: str
    remedy: str


#: The remedy of what recovery mends.
REPAIR: Final = "muster recover apply"
_OPERATOR: Final = (
    "muster recover apply --from ARCHIVE|BACKUP brings back what is kept there; without, it quarantines the session, "
    "and muster recover accept gives the damaged end up"
)
_ACCEPT: Final = "muster epoch show names what is lost; bring it back, or accept it: muster epoch accept"
_ARCHIVE: Final = (
    "put the segment back that the cause names, from a copy of the archive; or of a backup: docs/archive.md"
)

#: Every code a finding may carry.
KINDS: Final[dict[str, Kind]] = {
    "LOG_GAP": Kind("log", "critical", _OPERATOR),
    "LOG_TRIMMED": Kind("log", "critical", _OPERATOR),
    "LOG_ALTERED": Kind("log", "critical", _OPERATOR),
    "TAIL_LOST": Kind("log", "critical", _OPERATOR),
    "FORK": Kind("log", "critical", _ACCEPT),
    "SKIP_FORGED": Kind("log", "critical", "muster recover apply takes the skip away, so that its commit counts again"),
    "EVENT_ILLEGAL": Kind("log", "error", "find the producer that does not state the kinds of its events truly"),
    "EVENT_UNREADABLE": Kind("log", "error", "find the producer that wrote what cannot be decoded"),
    "EVENT_NEWER": Kind("log", "warning", "start workers of the release that knows it: the session goes on by itself"),
    "WORKER_KILLED": Kind("log", "error", "muster parked retry once the cause is gone, or muster parked discard"),
    "QUARANTINED": Kind("log", "warning", "the log verifies to its end: muster recover accept lifts the quarantine"),
    "ARCHIVE_MISSING": Kind("archive", "critical", _ARCHIVE),
    "ARCHIVE_DAMAGED": Kind("archive", "critical", _ARCHIVE),
    "ARCHIVE_STRAY": Kind(
        "archive", "error", "the archive knows what the log does not hold: muster recover plan --from ARCHIVE says more"
    ),
    "ARCHIVE_UNREACHABLE": Kind("archive", "error", "bring the archive back: what lies in it could not be read"),
    "ARCHIVE_DENIED": Kind("archive", "error", "give whoever verifies the right to read the archive"),
    "ARCHIVE_NOT_GIVEN": Kind("archive", "warning", "name the archive (MUSTER_ARCHIVE__URL), then verify again"),
    "REGISTRY_DIFFERS": Kind("registry", "error", REPAIR),
    "ORPHAN": Kind("view", "warning", REPAIR),
    "HEAD_MISSING": Kind("head", "error", REPAIR),
    "HEAD_DIFFERS": Kind("head", "error", REPAIR),
    "VIEW_MISSING": Kind("view", "error", REPAIR),
    "VIEW_UNREADABLE": Kind("view", "error", REPAIR),
    "VIEW_DIFFERS": Kind("view", "error", REPAIR),
    "VIEW_BEHIND": Kind("view", "error", REPAIR),
    "VIEW_AHEAD": Kind("view", "error", REPAIR),
    "SESSION_PARKED": Kind("view", "warning", REPAIR),
    "FOLD_DIFFERS": Kind(
        "view", "critical", "a bug in this release's fold, which no rebuild mends: report both readings"
    ),
    "CHECKPOINT_MISSING": Kind("checkpoint", "error", REPAIR),
    "CHECKPOINT_DIFFERS": Kind("checkpoint", "error", REPAIR),
    "CHECKPOINT_UNEXPECTED": Kind("checkpoint", "warning", REPAIR),
    "AGENT_MISSING": Kind("agent", "error", REPAIR),
    "AGENT_DIFFERS": Kind("agent", "error", REPAIR),
    "AGENT_UNEXPECTED": Kind("agent", "error", REPAIR),
    "INDEX_DIFFERS": Kind("index", "error", REPAIR),
    "STATISTICS_DIFFER": Kind("index", "error", REPAIR),
    "CURSOR_MISSING": Kind("cursor", "warning", REPAIR),
    "CURSOR_AHEAD": Kind("cursor", "error", REPAIR),
    "CURSOR_BEHIND": Kind("cursor", "warning", REPAIR),
    "SUBSCRIPTION_DAMAGED": Kind(
        "cursor", "error", "muster subscription drop, then subscribe under the name again, from the beginning"
    ),
    "SUBSCRIPTION_LOST": Kind(
        "cursor",
        "critical",
        "its members are told, and go on by accept_loss; or bring the server back that holds it",
    ),
    "FEED_DIFFERS": Kind("feed", "error", "muster projection rebuild, then look for whoever writes to the feed"),
}


class Finding(Struct, frozen=True):
    """One place where stored state breaks a law. `stored` and `rebuilt` hold only what differs."""

    schema: str
    code: str
    severity: str
    kind: str
    session: str | None
    agent: str | None
    projection: str | None
    first_bad_seq: int | None
    stored: Any
    rebuilt: Any
    remedy: str
    quarantined: bool
    #: Which partition the finding is in; recovery works by partition.
    partition: int


def finding(
    code: str,
    partition: int,
    *,
    session: str | None = None,
    agent: str | None = None,
    first_bad_seq: int | None = None,
    stored: Any = None,
    rebuilt: Any = None,
    quarantined: bool = False,
    subscription: str | None = None,
) -> Finding:
    """A finding of a registered code; one about a durable subscription names it as `projection`."""
    kind = KINDS[code]
    projection = session_view.NAME if kind.kind in ("view", "checkpoint", "agent", "index", "cursor") else None
    if subscription is not None:
        projection = f"subscription:{subscription}"
    return Finding(
        SCHEMA, code, kind.severity, kind.kind, session, agent, projection, first_bad_seq,
        stored, rebuilt, kind.remedy, quarantined, partition,
    )  # fmt: skip


def difference(stored: Any, rebuilt: dict[str, Any]) -> dict[str, Any]:
    """The fields in which two documents differ, as the arguments `stored` and `rebuilt` of a finding."""
    if not isinstance(stored, dict) or "unreadable" in stored:
        return {"stored": stored, "rebuilt": rebuilt}
    names = [name for name in rebuilt if stored.get(name) != rebuilt[name]]
    return {
        "stored": {name: stored.get(name) for name in names},
        "rebuilt": {name: rebuilt[name] for name in names},
    }
