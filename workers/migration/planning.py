"""What a migration would do: how much there is to move, and what would keep a session from it. Changes nothing."""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from domain.log.contract import Head
from domain.log.subscribing.delivery import Wanted
from domain.log.subscribing.durable import DurableSubscriptions
from workers.migration.cursors import Subscribed, subscribed
from workers.migration.ends import Ends
from workers.migration.proof import Proof
from workers.migration.selecting import PAGE, pages, selected

SCHEMA: Final = "muster.migration-plan/1"
#: How many of each kind are named.
NAMED: Final = 100


class Hindrance(Struct, frozen=True):
    """A session that would not be moved, and why: the code it would fail with."""

    session: str
    code: str
    seq: int


class Plan(Struct):
    """How much there is, and what stands in the way."""

    sessions: int = 0
    events: int = 0
    elsewhere: int = 0
    hindrances: list[Hindrance] = []
    #: Durable subscriptions, and the code of what would keep their cursors at the source.
    subscriptions: dict[str, str | None] = {}

    @property
    def is_hindered(self) -> bool:
        """Whether anything would stay behind."""
        return bool(self.hindrances) or any(self.subscriptions.values())


def plan(ends: Ends, selection: dict[str, Any]) -> Plan:
    """Looks at the heads of everything that is selected, on both sides."""
    made = Plan()
    for page in pages(selected(ends.source, selection), PAGE):
        heads, there = ends.source.log.heads(page), ends.target.log.heads(page)
        for session, head, other in zip(page, heads, there, strict=True):
            if head is None or not head.seq:
                continue
            if head.is_elsewhere:
                made.elsewhere += 1
                continue
            made.sessions += 1
            made.events += head.seq
            if head.quarantined:
                made.hindrances.append(Hindrance(session, "QUARANTINED", head.seq))
            elif other is not None and not _is_free(other):
                made.hindrances.append(Hindrance(session, "MIGRATION_CONFLICT", other.seq))
    there_wanted = {one.name: one.wanted for one in subscribed(ends.target)}
    for one in subscribed(ends.source):
        made.subscriptions[one.name] = _hindrance(ends, one, there_wanted.get(one.name, one.wanted))
    return made


def _hindrance(ends: Ends, one: Subscribed, wanted_there: Wanted) -> str | None:
    reached = ends.source.log.drive(DurableSubscriptions(ends.source.keyspace).reached(one.name, one.wanted))
    if any(found.place is None for found in reached.values()):
        return "SUBSCRIPTION_DAMAGED"
    return None if one.wanted == wanted_there else "SUBSCRIPTION_DIFFERS"


def _is_free(head: Head) -> bool:
    """Whether a session may take the name: nothing has it, or a copy on its way, or one that was taken back."""
    return head.seq == 0 and head.is_elsewhere


def told(ends: Ends, made: Plan) -> dict[str, Any]:
    """A plan as it is printed."""
    return {
        "schema": SCHEMA,
        "from": str(ends.source.place),
        "to": str(ends.target.place),
        "partitions": [ends.source.keyspace.count, ends.target.keyspace.count],
        "sessions": made.sessions,
        "events": made.events,
        "elsewhere": made.elsewhere,
        "hindered": len(made.hindrances),
        "hindrances": [{"session": one.session, "code": one.code, "seq": one.seq} for one in made.hindrances[:NAMED]],
        "subscriptions": made.subscriptions,
        "seal_proof": Proof(ends.source).wanted,
        "clock_ms_apart": abs(ends.source.now_ms() - ends.target.now_ms()),
    }
