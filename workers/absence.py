"""Reports agents that gave no sign of life for too long: one event each, and they are present no more.

Whoever was not watched all the while (workers/vigil.py) is given the time to be heard again first.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from domain.events import AGENT_GONE
from domain.log import SessionLog
from projections import session_view
from projections.session_view import rfc3339
from projections.store import ProjectionStore
from workers.stating import commit_keys, no_commit, own_commit
from workers.vigil import Vigil

logger = logging.getLogger(__name__)

#: How many silent agents of a partition are looked at in one round.
PAGE: Final = 256


class Absences:
    """The silent agents in the partitions that this process holds."""

    def __init__(self, log: SessionLog, store: ProjectionStore, vigil: Vigil, *, grace_s: float) -> None:
        self._log = log
        self._store = store
        self._vigil = vigil
        self._grace_ms = int(grace_s * 1000)

    def look(self, now: int) -> int:
        """Reports who is silent for too long in the partitions that are watched; returns how many agents. Raises
        redis-py's errors.
        """
        partitions = [at for at, since in self._vigil.since.items() if now - since >= self._grace_ms]
        pipe = self._log.client.pipeline(transaction=False)
        for partition in partitions:
            pipe.zrange(
                self._store.keys(partition).beats, "-inf", str(now), byscore=True, offset=0, num=PAGE, withscores=True
            )
        found = pipe.execute() if partitions else []
        return sum(
            self._report(partition, *_named(member), int(at))
            for partition, silent in zip(partitions, found, strict=True)
            for member, at in silent
        )

    def _report(self, partition: int, session: str, agent: str, since_ms: int) -> bool:
        """Appends that the agent is gone, unless it was heard of since. Of one that left before, nothing is said."""
        names = [*commit_keys(self._log, session), self._store.keys(partition).beats]
        commit = no_commit(self._log, session)
        if self._is_present(session, agent):
            told = {"gone": agent, "silent_since": rfc3339(since_ms)}
            commit = own_commit(self._log, session, AGENT_GONE, told)
        reply: Any = self._log.client.fcall("muster_gone_1", len(names), *names, *commit, agent, since_ms)
        if reply[0] == b"DAMAGED":
            about = {"action": "sessions.absence_untold", "session": session, "agent": agent}
            logger.warning(
                "that agent %s of session %s is gone cannot be said: %s",
                *(agent, session, reply[1].decode()),
                extra=about,
            )
        return bool(reply[0] == b"APPENDED")

    def _is_present(self, session: str, agent: str) -> bool:
        """Whether the agent is a member by the session's view, which may be a moment old."""
        view = session_view.readable(self._store.views([session])[0], session)
        return view is None or agent not in view.agents or view.agents[agent].present


def _named(member: bytes) -> tuple[str, str]:
    session, _, agent = member.decode().partition(" ")
    return session, agent
