"""Holding a migration: one process works on it at a time, and whoever dies over it is gone on from within seconds."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Final

import redis

from domain.errors import Conflict, MusterError, Refused
from workers.migration import record
from workers.migration.ends import End
from workers.migration.record import Migration, Migrations

#: How much longer than its lease a dead process is waited for, in seconds.
PATIENCE_S: Final = 2.0


class Holding:
    """The lease of one migration, on its target; `token` is what every step of a phase carries."""

    def __init__(self, target: End, migration: Migration, say: Callable[[str], None]) -> None:
        self.token = ""
        self._target = target
        self._migrations = Migrations(target.store)
        self._migration = migration
        self._say = say

    @contextmanager
    def phase(self, begins: str, ends: str | None = None) -> Iterator[None]:
        """A phase, under the lease: the migration's state is `begins` meanwhile, and `ends` after it.

        Raises Conflict (MIGRATION_BUSY) if another process works on it and lives.
        """
        id = self._migration.id
        self.token = self._claimed()
        done = Event()
        keeper = Thread(target=self._keep, args=(done,), name=f"migration-{id}", daemon=True)
        keeper.start()
        try:
            now = self._target.now_ms()
            began = self._migration.began or now
            self._migrations.note(id, state=begins, began=began, beat=now, error=None)
            yield
            if ends is not None:
                self.becomes(ends)
        except MusterError as error:
            # What was refused before anything was changed leaves the migration as it was.
            is_refused = isinstance(error, Refused) or error.code == "ROLLBACK_REFUSED"
            told = {"state": self._migration.state} if is_refused else {"error": f"{error.code}: {error.cause}"}
            with suppress(redis.RedisError):  # whoever runs this is told by the error itself
                self._migrations.note(id, **told)
            raise
        finally:
            done.set()
            keeper.join()
            with suppress(redis.RedisError):  # else it runs out by itself
                self._migrations.release(id, self.token)

    def becomes(self, state: str) -> None:
        """Notes what state the migration is in."""
        over = {"ended": self._target.now_ms()} if state in record.ENDED else {}
        self._migrations.note(self._migration.id, state=state, **over)

    def check(self) -> None:
        """Raises Conflict (MIGRATION_BUSY) if another process goes on with the migration."""
        if not self._migrations.renew(self._migration.id, self.token):
            raise Conflict("MIGRATION_BUSY", f"another process goes on with migration {self._migration.id}")

    def _claimed(self) -> str:
        worker = f"{platform.node()}:{os.getpid()}:{time.monotonic_ns()}"
        deadline = time.monotonic() + record.LEASE_TTL_MS / 1000 + PATIENCE_S
        is_told = False
        while True:
            try:
                return self._migrations.claim(self._migration.id, worker)
            except Conflict as busy:
                if time.monotonic() > deadline:
                    raise
                if not is_told:
                    self._say(f"waiting: {busy.cause}")
                is_told = True
                time.sleep(min(0.25, busy.facts["left_ms"] / 1000 + 0.01))

    def _keep(self, done: Event) -> None:
        while not done.wait(record.LEASE_TTL_MS / 4000):
            try:
                if not self._migrations.renew(self._migration.id, self.token):
                    return
            except (redis.RedisError, OSError, MusterError) as error:
                self._say(f"the lease of migration {self._migration.id} could not be renewed: {error}")
