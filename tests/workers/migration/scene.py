"""Two stores, and a migration between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from domain import Commit, Event, MusterError, SessionLog
from domain.log import AsyncSessionLog, Connecting
from domain.log.archive.place import Archive
from tests.conftest import ENVIRONMENT, Store
from workers.migration.ends import Address, Ends, opened
from workers.migration.moving import Done, Moving
from workers.migration.record import Migration, Migrations, Move
from workers.pacing import Pace

WHO = "ann"


class Scene:
    """A source and a target."""

    def __init__(self, source: Store, target: Store) -> None:
        self.source = source
        self.target = target
        #: What either end archived.
        self.archive: Archive | None = None

    @contextmanager
    def ends(
        self,
        *,
        source_url: str | None = None,
        target_url: str | None = None,
        **patience: Any,
    ) -> Iterator[Ends]:
        """Both ends, as a migrator opens them."""
        addresses = [
            Address(Connecting(url or store.url, **patience), ENVIRONMENT, store.namespace, self.archive)
            for store, url in ((self.source, source_url), (self.target, target_url))
        ]
        with opened(*addresses) as ends:
            yield ends

    def begun(self, ends: Ends, selection: dict[str, Any] | None = None, kind: str = "move") -> Migration:
        return Migrations(ends.target.store).create(ends, kind, selection or {}, WHO)

    def moving(self, ends: Ends, migration: Migration, **options: Any) -> Moving:
        return moving(ends, migration, **options)

    def moved(self, selection: dict[str, Any] | None = None) -> Migration:
        """Moves what is selected, from beginning to end."""
        with self.ends() as ends:
            migration = self.begun(ends, selection)
            work = self.moving(ends, migration)
            copied(work)
            cut(work)
            return Migrations(ends.target.store).get(migration.id)

    def moves(self, migration: Migration) -> dict[str, Move]:
        with self.ends() as ends:
            return dict(Migrations(ends.target.store).moves(migration.id))

    def producer(self, **options: Any) -> SessionLog:
        """A producer at the source that knows of the target."""
        return SessionLog.open(
            Connecting(self.source.url), environment=ENVIRONMENT, namespace=self.source.namespace,
            moved=[self.target.url], **options,
        )  # fmt: skip

    async def async_producer(self) -> AsyncSessionLog:
        return await AsyncSessionLog.open(
            Connecting(self.source.url), environment=ENVIRONMENT, namespace=self.source.namespace,
            moved=[self.target.url],
        )  # fmt: skip


def moving(ends: Ends, migration: Migration, **options: Any) -> Moving:
    return Moving(ends, migration, who=WHO, pace=Pace(lambda _: None, verb="moved"), say=lambda _: None, **options)


def copied(work: Moving, sessions: Sequence[str] | None = None) -> Done:
    """The phase that copies."""
    with work.phase("copying", "copied"):
        return work.copy(sessions)


def cut(work: Moving, sessions: Sequence[str] | None = None) -> Done:
    """The phase that moves."""
    with work.phase("cutting over", "moved"):
        return work.cutover(sessions)


def note(actor: str = "ann", id: str = "", **data: Any) -> Event:
    return Event.of("modified", actor=actor, id=id, data=data)


def fill(log: SessionLog, sessions: Sequence[str], commits: int = 3) -> None:
    """A few commits of two events each."""
    for session in sessions:
        for _ in range(commits):
            log.append(session, [note(), note("bob")])


def history(log: SessionLog, session: str) -> list[Commit]:
    return list(log.read(session))


def refused(code: str) -> Any:
    """The error of a code is raised inside."""
    return pytest.raises(MusterError, match=rf"^{code}:")
