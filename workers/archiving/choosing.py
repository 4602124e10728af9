"""Which sessions may leave the server's memory, and up to where.

A session that ended long enough ago goes as a whole, and while memory is short one that idles; of any other the newest
events stay. Nothing goes that is not behind what is derived from it: a session that goes as a whole stands with its
view, one that is open lies behind a checkpoint that can be read, and no cursor of a projection of the user's own has it
still before it. Whoever stands in doubt (parked, quarantined, moved, without a view that can be read) stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from domain.log.contract import Head, Position
from domain.log.protocol import HORIZON_FIELDS, Horizon, parse_horizon
from domain.session import OPEN_GATE
from projections import session_view
from projections.own.publishing import Publications, positions
from projections.store import ProjectionStore, parse_checkpoints, readable_head, unless_of_another_type

#: Of an open session so many events more than stay are let pass before some go: segments are not to be tiny.
SPARE: Final = 0.5
LEAST_SPARE: Final = 50
#: Whose commits may not leave: quarantined, or moved by a migration.
_STAYS: Final = frozenset("qm")


class Keeping(Struct, frozen=True):
    """What stays on the server: of an open session the newest events, at least so many; one that ended, for so long;
    one to which nothing comes, for `idle_s`.
    """

    hot_events: int
    after_end_s: float
    idle_s: float = math.inf

    @property
    def spare(self) -> int:
        return max(LEAST_SPARE, int(self.hot_events * SPARE))


#: While memory is short: only what follows the last checkpoint of a session that is being worked on.
TIGHT: Final = Keeping(0, 0.0, 60.0)


class Candidate(Struct, frozen=True):
    """A session of which all after `since` up to `up_to` may go; the commit that holds `up_to` only if it ends there.

    `behind` is where the view or the checkpoint stands that it lies behind.
    """

    session: str
    since: Horizon | None
    up_to: int
    behind: Position

    @property
    def from_seq(self) -> int:
        return self.since.seq if self.since is not None else 0


def candidates(store: ProjectionStore, partition: int, keeping: Keeping) -> Iterator[Candidate]:
    """The sessions of a partition that may go, or the beginnings of them. Raises redis-py's errors."""
    keys = store.keys(partition)
    for page in store.member_pages(partition):
        now = store.server_ms()
        packed = store.client.mget([keys.head(session) for session in page])
        heads = {session: readable_head(one) for session, one in zip(page, packed, strict=True)}
        due = {session: head for session, head in heads.items() if head is not None and _may_be_due(head, keeping, now)}
        if due:
            yield from _settled(store, partition, due, keeping, now)


def applied_before_ms(store: ProjectionStore, partition: int) -> float:
    """Up to when, in server ms, every projection of the user's own holds what was appended; for ever without any."""
    versions = Publications(store.client, store.keyspace).versions()
    found = positions(store.client, store.keyspace, versions)[partition] if versions else []
    following = [store.oldest_after(partition, position) for position in set(found)]
    return min((entry.at_ms for entry in following if entry is not None), default=math.inf)


def _may_be_due(head: Head, keeping: Keeping, now: int) -> bool:
    """Whether some of a session may go, by its head alone."""
    if head.is_cold or not head.seq or _STAYS & {*head.flags}:
        return False
    return _is_still(head, keeping, now) or head.seq > keeping.hot_events + keeping.spare


def _is_still(head: Head, keeping: Keeping, now: int) -> bool:
    """Whether nothing more is to be expected."""
    still_s = (now - head.at_ms) / 1000
    return still_s >= (keeping.idle_s if head.gate == OPEN_GATE else keeping.after_end_s)


def _settled(
    store: ProjectionStore, partition: int, heads: dict[str, Head], keeping: Keeping, now: int
) -> Iterator[Candidate]:
    """Of these sessions, those that are behind what is derived from them."""
    keys = store.keys(partition)
    pipe = store.client.pipeline(transaction=False)
    for session in heads:
        pipe.hmget(keys.hold(session), *HORIZON_FIELDS)
        pipe.get(keys.session_view(session))
        pipe.hgetall(keys.checkpoints(session))
    replies = [unless_of_another_type(reply) for reply in pipe.execute(raise_on_error=False)]
    parked = store.parked(partition, list(heads))
    for at, (session, head) in enumerate(heads.items()):
        held, view, checkpoints = replies[3 * at : 3 * at + 3]
        since = parse_horizon(held) if held is not None else None
        if parked[at] is not None or (head.is_archived and since is None):
            continue
        from_seq = since.seq if since is not None else 0
        if _is_still(head, keeping, now):
            behind = _standing(session, view)
            up_to = head.seq if behind == head.position else 0
        elif head.seq - from_seq > keeping.hot_events + keeping.spare:
            behind = _newest_checkpoint(session, checkpoints)
            up_to = min(head.seq - keeping.hot_events, behind.seq)
        else:
            continue
        if up_to > from_seq:
            yield Candidate(session, since, up_to, behind)


def _newest_checkpoint(session: str, stored: Any) -> Position:
    """Where a session's newest checkpoint stands; at seq 0 if it has none that can be read."""
    checkpoints = parse_checkpoints(stored) if isinstance(stored, dict) else {}
    newest = max(checkpoints, default=0)
    position = _standing(session, checkpoints.get(newest))
    return position if position.seq == newest else Position(0)


def _standing(session: str, stored: bytes | None) -> Position:
    """Where a stored view of a session stands; at seq 0 if it cannot be read, or does not add up."""
    view = session_view.readable(stored, session)
    return Position(view.seq, view.digest) if view is not None and session_view.adds_up(view) else Position(0)
