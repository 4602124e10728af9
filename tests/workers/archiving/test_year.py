"""A year of sessions by a clock that the test says: whatever expired, was archived and reopened, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from domain import Commit, Event
from projections import session_view
from projections.queries import Views
from projections.session_view import Folding
from projections.store import ProjectionStore
from tests.chaos.effort import FULL, seeded
from tests.conftest import Store
from tests.projections.world import World, did
from workers.archiving.archivist import Archivist
from workers.archiving.choosing import Keeping
from workers.expiry import Expiry
from workers.vigil import Vigil

MINUTE, DAY = 60_000, 86_400_000
DAYS = 365 if FULL else 150


class AtTime(ProjectionStore):
    """What is derived, by a server whose clock is the test's."""

    now = 0

    def server_ms(self) -> int:
        return self.now


class Year:
    """A store in a year of its own: times of commits, deadlines and archiving go by its clock."""

    def __init__(self, world: World, chance: Random) -> None:
        self.world = world
        self.chance = chance
        #: All that was ever appended, as it was read right after.
        self.ever: dict[str, list[Commit]] = {}
        self._store = AtTime(world.log.client, world.keyspace)
        self._expiry = Expiry(world.log, self._store, idle_s=1800, grace_s=180)
        self._views = Views(world.projections, world.log)
        self._store.now = world.projections.server_ms()
        self.archived = self.expired = self.reopened = self.extended = 0

    def passes(self, minutes: float) -> None:
        """Time goes on; what is appended from now on comes later."""
        self._store.now += int(minutes * MINUTE)
        for keys in self.world.keyspace.partitions:
            self.world.redis.hset(keys.meta, "at", self._store.now)

    def appends(self, session: str, *events: Event) -> None:
        self.world.log.append(session, events)
        self.hears_of(session)

    def hears_of(self, session: str) -> None:
        """Takes in what came to a session since it last looked."""
        known = self.ever.setdefault(session, [])
        known += self.world.log.read(session, after=known[-1].last_seq if known else 0)

    def ticks(self) -> None:
        """What workers do now and then: views, warnings, ends."""
        self.world.project()
        vigil = Vigil()
        vigil.since = dict.fromkeys(range(self.world.keyspace.count), 0)
        _, ended = self._expiry.look(self._store.now, vigil)
        self.expired += ended
        self.world.project()
        for session, head in zip(self.ever, self.world.log.heads(list(self.ever)), strict=True):
            if head is not None and head.seq > self.ever[session][-1].last_seq:
                self.hears_of(session)

    def archives(self) -> None:
        archivist = Archivist(self.world.log, self._store, self.world.log.archive)
        for partition in range(self.world.keyspace.count):
            archivist.partition(partition, Keeping(100, 3600.0))
        self.archived += archivist.done.sessions
        assert archivist.done.left == 0

    def shows(self, session: str) -> None:
        """What is read of a session is the fold of all that was ever appended to it, now and at any seq."""
        known = self.ever[session]
        assert list(self.world.log.read(session)) == known
        folding = Folding(session_view.initial(session))
        folding.advance(known)
        assert self.world.redis.get(self.world.keyspace.of(session).session_view(session)) == session_view.encode(
            folding.view
        )
        middle = self.chance.choice(known)
        then = Folding(session_view.initial(session))
        then.advance([commit for commit in known if commit.last_seq <= middle.last_seq])
        assert self._views.session_at(session, middle.last_seq)["digest"] == then.view.digest

    def gate(self, session: str) -> str:
        head = self.world.log.head(session)
        return head.gate if head is not None else "o"


@pytest.fixture
def year(make_store: Callable[..., Store], server_url: str, folder: Path) -> Year:
    return Year(World(make_store(server_url, partitions=1), archive=str(folder)), seeded())


def test_a_year_of_sessions_is_read_as_the_fold_of_all_events_ever_appended(year: Year) -> None:
    """Every day sessions begin, go on, say that they take longer, are left alone, are read again and opened again.

    A whole year where MUSTER_CHAOS=full, in the gate five months of it.
    """
    chance, world = year.chance, year.world
    for day in range(DAYS):
        for number in range(chance.randrange(3)):
            year.appends(f"s-{day}-{number}", did("start"), *(did("tool.called") for _ in range(chance.randrange(60))))
        for session in chance.sample(sorted(year.ever), min(3, len(year.ever))):
            if year.gate(session) != "o":
                year.reopened += 1
                year.appends(session, did("start"))
            if chance.random() < 0.2:
                year.extended += 1
                year.appends(session, Event.of("extended", actor="ann", data={"ttl_s": 3 * 86_400}))
            year.appends(session, *(did("modified") for _ in range(chance.randrange(1, 120))))
            if chance.random() < 0.3:
                year.appends(session, did("completed"))
        for minutes in (31, 4):
            year.passes(minutes)
            year.ticks()
        year.archives()
        for session in chance.sample(sorted(year.ever), min(3, len(year.ever))):
            year.shows(session)
        year.passes(DAY / MINUTE - 35)
        year.ticks()

    assert min(year.archived, year.expired, year.reopened, year.extended) > 50
    for session in year.ever:
        year.shows(session)
    assert world.verify() == []
    cold: Any = [head for head in world.log.heads(sorted(year.ever)) if head is not None and head.is_cold]
    assert len(cold) > len(year.ever) / 2
