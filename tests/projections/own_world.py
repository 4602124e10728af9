"""A store whose own projections are worked on step by step, in this process, as workers do."""

from __future__ import annotations

from typing import Any

from domain.log.contract import EventLog
from projections.lease import Leases
from projections.own.catchup import OwnProjector
from projections.own.drift import OwnValidator
from projections.own.publishing import Publications
from projections.own.reading import OwnViews
from projections.own.store import OwnStore
from projections.projection import Definition, Projection, RecordedEvent
from tests.projections.examples import expected
from tests.projections.world import World
from workers.feed import batch_of
from workers.partitions import HeldPartition


class Own:
    """One version of an own projection in a world's store."""

    def __init__(self, world: World, kind: type[Projection]) -> None:
        self.world = world
        self.definition = Definition(kind())
        self.store = OwnStore(world.log.client, world.log.keyspace, self.definition)
        self.projector = OwnProjector(self.store, world.log)
        self.publications = Publications(world.log.client, world.log.keyspace)
        self.publications.register(self.definition)
        self.leases = Leases(world.log.client, world.log.keyspace, "tester", owned=self.store.owned)
        self.views = OwnViews(world.log, [self.definition.projection])

    def project(self, *, entries: int = 1000) -> None:
        """Brings all partitions up to date, batches of so many feed entries at a time."""
        for partition in range(self.world.keyspace.count):
            token = self.claim(partition)
            while not self.projector.build_slice(partition, token):
                pass
            while self.follow(partition, token, entries=entries):
                pass
            self.leases.release(partition, token)

    def claim(self, partition: int) -> str:
        token = self.leases.claim(partition, ttl_ms=60_000)
        assert token is not None
        return token

    def follow(self, partition: int, token: str, *, entries: int = 1000) -> bool:
        """Applies the next batch; False if there is none."""
        position = self.store.cursor(partition).position
        assert position is not None
        found = self.store.feed_after(partition, position)[:entries]
        if not found:
            assert position == self.store.total(partition)
            return False
        self.projector.project(batch_of(partition, HeldPartition(token, position), found))
        return True

    def offer(self) -> None:
        """What a worker does every second, until there is nothing more to do."""
        first = self.publications.offer(self.store, "tester", {})
        if first:
            self.publications.offer(self.store, "tester", first)

    def states(self) -> dict[str, Any]:
        """All states readers get of this version."""
        return dict(self.views.all(self.definition.name, version=self.definition.version))

    def expected(self) -> dict[str, Any]:
        """What the log gives, in the plainest way."""
        return expected(self.definition, recorded(self.world.log))

    def codes(self) -> list[str]:
        """The codes of all findings."""
        return sorted(finding.code for finding in OwnValidator(self.store, self.world.log).everything())

    def assert_right(self) -> None:
        """Readers get what the log gives, and the validator finds nothing."""
        assert self.states() == self.expected()
        assert self.codes() == []


def recorded(log: EventLog) -> dict[str, list[RecordedEvent]]:
    """All sessions' events."""
    return {
        session: [
            RecordedEvent(session, seq, commit.at_ms, event)
            for commit in log.read(session)
            if not commit.skipped
            for seq, event in enumerate(commit.events, commit.first_seq)
        ]
        for session in log.sessions()
    }
