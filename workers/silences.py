"""What follows from silence, by the settings in force: agents that are gone, sessions that idle.

While the store takes no appends, nobody is silent by his own doing: nothing is stated, and watching begins anew.
"""

from __future__ import annotations

from domain.log import SessionLog
from domain.log.read_only import ReadOnlyMode
from projections.store import ProjectionStore
from workers.absence import Absences
from workers.expiry import Expiry
from workers.reloading import InForce
from workers.vigil import Vigil


class Silences:
    """Watches the partitions that this process holds."""

    def __init__(self, log: SessionLog, store: ProjectionStore, in_force: InForce) -> None:
        self._log = log
        self._store = store
        self._in_force = in_force
        self._mode = ReadOnlyMode(log)
        self._vigil = Vigil()
        self._heed()

    def look(self, partitions: list[int]) -> None:
        """States what is due. Raises redis-py's errors, and the typed ones."""
        if self._settings is not self._in_force.settings:
            self._heed()
        now = self._store.server_ms()
        self._log.clock.learn(now)
        # They are closed and opened together.
        if self._mode.standing(partitions[:1]) is not None:
            self._vigil.broke()
            return
        self._vigil.look(now, partitions)
        self._absences.look(now)
        if self._settings.sessions.expire:
            self._expiry.look(now, self._vigil)

    def broke(self) -> None:
        """The server was away: what came meanwhile was not seen."""
        self._vigil.broke()

    def _heed(self) -> None:
        self._settings = settings = self._in_force.settings
        ends, grace_s = settings.sessions, settings.worker.absence_grace_s
        self._absences = Absences(self._log, self._store, self._vigil, grace_s=grace_s)
        self._expiry = Expiry(self._log, self._store, idle_s=ends.idle_s, grace_s=ends.grace_s)
