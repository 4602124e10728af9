"""Has sessions expire that idle: first a warning, then, after a grace, the end. Nothing is lost by it: `start` reopens.

Theory of operation. The indexes hold when something came last to each open session, by its log alone; what is due is
found by one range a partition. What is stated (`muster.expiring`, `expired`) is written only if the session stands
where its view stands, so whatever came meanwhile keeps it open, and the view, once it has moved, moves the index. A
session in which an agent gives signs of life does not idle. What was not watched all the while (workers/vigil.py) gets
the grace anew. And where many would end at once, something else is wrong, and none does until an operator says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import Struct

from domain.events import EXPIRING
from domain.log import SessionLog
from domain.log.protocol import refused
from domain.session import OPEN_GATE, Session
from projections import session_view
from projections.store import ProjectionStore
from workers.stating import commit_keys, own_commit
from workers.vigil import Vigil

logger = logging.getLogger(__name__)

#: How many sessions of a partition are looked at in one round.
PAGE: Final = 256
ALL: Final = -1
#: No more than this part of the live sessions ends in one round, unless these are few.
BRAKE: Final = 0.05
FEW: Final = 20


class Due(Struct, frozen=True):
    """What is due in some partitions: sessions to be warned, sessions to end, and how many live."""

    warned: list[tuple[int, str]]
    ending: list[tuple[int, str]]
    live: int

    @property
    def is_braked(self) -> bool:
        """Whether so many would end at once that something else is wrong."""
        return len(self.ending) > max(FEW, BRAKE * self.live)


class Expiry:
    """Sessions that idle, in the partitions that this process holds."""

    def __init__(self, log: SessionLog, store: ProjectionStore, *, idle_s: float, grace_s: float) -> None:
        self._log = log
        self._store = store
        self._idle_ms = int(idle_s * 1000)
        self._grace_ms = int(grace_s * 1000)
        self._was_braked = False

    def look(self, now: int, vigil: Vigil) -> tuple[int, int]:
        """Warns and ends what is due in the partitions that are watched; returns how many of each. Raises redis-py's
        errors.
        """
        due = self.due(now, list(vigil.since))
        seen = {partition for partition, since in vigil.since.items() if now - since >= self._grace_ms}
        ending = [one for one in due.ending if one[0] in seen]
        if due.is_braked != self._was_braked:
            self._was_braked = due.is_braked
            if due.is_braked:
                logger.error(
                    "of %d live sessions %d would expire at once: none does; see why, then `muster session expire`",
                    *(due.live, len(due.ending)),
                    extra={"action": "sessions.expiry_braked"},
                )
        warned = self.warn(now, due.warned)
        return warned, 0 if due.is_braked else self.end(ending)

    def due(self, now: int, partitions: Sequence[int], *, most: int = PAGE) -> Due:
        """What is due, of each partition and kind at most so many."""
        pipe = self._log.client.pipeline(transaction=False)
        for partition in partitions:
            for index, until in self._indexes(partition, now):
                pipe.zrange(index, "-inf", str(until), byscore=True, offset=0, num=most)
                pipe.zcard(index)
        replies = iter(pipe.execute() if partitions else [])
        due = Due([], [], 0)
        live = 0
        for partition in partitions:
            intos = (due.warned, due.warned, due.ending)
            for into, (index, until) in zip(intos, self._indexes(partition, now), strict=True):
                into += [(partition, session) for session in self._here(next(replies), index, until, most)]
                live += next(replies)
        return Due(due.warned, due.ending, live)

    def _indexes(self, partition: int, now: int) -> tuple[tuple[str, int], ...]:
        """Where what is due in a partition stands, and until which score it is."""
        keys = self._store.keys(partition)
        return (keys.idle_index, now - self._idle_ms), (keys.until_index, now), (keys.expiring_index, now)

    def _here(self, found: Sequence[bytes], index: str, until: int, most: int) -> list[str]:
        """Those of a page of an index that were not moved elsewhere: nothing is stated of a session that was. What
        lacks is made up from the pages after it.
        """
        client: Any = self._log.client
        here: list[str] = []
        offset = 0
        while found:
            names = [session.decode() for session in found]
            heads = self._store.heads(names)
            here += [one for one, head in zip(names, heads, strict=True) if head is None or not head.is_elsewhere]
            if len(here) >= most or len(found) < most or most == ALL:
                break
            offset += most
            found = client.zrange(index, "-inf", str(until), byscore=True, offset=offset, num=most)
        return here

    def warn(self, now: int, sessions: Sequence[tuple[int, str]]) -> int:
        """States of sessions that they expire, unless something comes; returns of how many."""
        at_ms = now + self._grace_ms
        count = 0
        for view in self._idling(sessions):
            if not view.expiring_at and self._idles_from(view) <= now:
                count += self._state(view, EXPIRING, {"expires_at_ms": at_ms})
        return count

    def end(self, sessions: Sequence[tuple[int, str]]) -> int:
        """Has sessions expire that were warned; returns how many did."""
        return sum(
            self._state(view, "expired", {"metadata": {"reason": "idle"}})
            for view in self._idling(sessions)
            if view.expiring_at
        )

    def _idles_from(self, view: Session) -> int:
        """From when on a session idles for too long."""
        return (view.active_at or view.started_at) + (1000 * view.ttl_s or self._idle_ms)

    def _idling(self, sessions: Sequence[tuple[int, str]]) -> Iterator[Session]:
        """The views of those sessions that are open and in which nobody gives signs of life."""
        names = [session for _, session in sessions]
        views = self._store.views(names) if names else []
        for (partition, session), stored in zip(sessions, views, strict=True):
            view = session_view.readable(stored, session)
            if view is not None and view.gate == OPEN_GATE and not self._is_attended(partition, view):
                yield view

    def _is_attended(self, partition: int, view: Session) -> bool:
        members = [f"{view.session} {agent}" for agent in view.agents]
        if not members:
            return False
        until: Any = self._log.client.zmscore(self._store.keys(partition).beats, members)
        now = self._store.server_ms()
        return any(score is not None and score > now for score in until)

    def _state(self, view: Session, type: str, data: dict[str, Any]) -> bool:
        """Appends what Muster states, if the session stands where its view stands."""
        names = commit_keys(self._log, view.session)
        known = f"{view.seq} {view.digest}"
        commit = own_commit(self._log, view.session, type, data, expected=view.seq, known=known)
        reply: Any = self._log.client.fcall("muster_state_1", len(names), *names, *commit)
        if reply[:2] == [b"REFUSED", b"READ_ONLY"]:
            raise refused(view.session, *(part.decode() for part in reply[1:]))
        return bool(reply[0] == b"APPENDED")
