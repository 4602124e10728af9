"""The Python library `eventsourcing`: an aggregate a session, an event a call.

On SQLite as it comes (WAL, synchronous full), and on PostgreSQL where its programs are there (fsync on).
"""

from __future__ import annotations

from typing import Any

from tests.bench.arena import Arena
from tests.bench.peers.peer import Folding, Peer
from tests.bench.peers.postgresql import postgresql


def opened(arena: Arena, environment: dict[str, str]) -> Folding:
    """Its application, on what the environment names."""
    from eventsourcing.application import Application

    from tests.bench.peers.eventsourcing_aggregate import Session

    class Library:
        def __init__(self) -> None:
            self._application: Any = Application(env=environment)
            self._sessions: dict[str, Session] = {}

        def append(self, session: str, event: dict[str, Any]) -> None:
            aggregate = self._sessions.get(session)
            if aggregate is None:
                aggregate = self._sessions[session] = Session(session)
            aggregate.happen(event["type"], event["actor"], event["data"])
            self._application.save(aggregate)

        def read(self, session: str) -> int:
            happened = list(self._application.events.get(Session.create_id(session)))
            return len(happened) - 1  # the first says that the aggregate was made

        def fold(self, session: str) -> int:
            return int(self._application.repository.get(Session.create_id(session)).events)

        def close(self) -> None:
            self._application.close()

    library = Library()
    arena.at_end(library.close)
    return library


def on_sqlite(arena: Arena) -> Folding:
    path = str(arena.folder / "eventsourcing.db")
    return opened(arena, {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": path})


def on_postgresql(arena: Arena) -> Folding:
    place = arena.keep(postgresql(arena.folder / "postgresql"))
    return opened(
        arena,
        {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": "postgres",
            "POSTGRES_HOST": place.host,
            "POSTGRES_PORT": str(place.port),
            "POSTGRES_USER": place.user,
            "POSTGRES_PASSWORD": "",
        },
    )


EVENTSOURCING = Peer("eventsourcing, SQLite", on_sqlite)
EVENTSOURCING_POSTGRESQL = Peer("eventsourcing, PostgreSQL", on_postgresql)
