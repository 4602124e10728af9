"""What follows from silence, by the settings in force: agents that are gone, sessions that idle.

While the store takes no appends, nobody is silent by his own doing: nothing is stated, and watching begins anew.
"""

from __future__ import annotations

import math

from domain.log import SessionLog
from domain.log.read_only import ReadOnlyMode
from projections.store import ProjectionStore
from workers.absence import Absences
from workers.expiry import Expiry
from workers.leasing import living_workers
from workers.patience import Patience
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
        self._be_as_patient_as_the_others()
        if self._patience.idle_s < math.inf:
            self._expiry.look(now, self._vigil)

    def broke(self) -> None:
        """The server was away: what came meanwhile was not seen."""
        self._vigil.broke()

    def _heed(self) -> None:
        self._settings = settings = self._in_force.settings
        grace_s = settings.worker.absence_grace_s
        self._absences = Absences(self._log, self._store, self._vigil, grace_s=grace_s)
        self._wait(Patience.of(settings.sessions))

    def _be_as_patient_as_the_others(self) -> None:
        own = Patience.of(self._settings.sessions)
        patience = own.with_that_of(living_workers(self._log.client, self._log.keyspace))
        if patience != self._patience:
            self._wait(patience)

    def _wait(self, patience: Patience) -> None:
        self._patience = patience
        if patience.idle_s < math.inf:
            self._expiry = Expiry(self._log, self._store, idle_s=patience.idle_s, grace_s=patience.grace_s)
