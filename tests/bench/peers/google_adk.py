"""`google-adk`: its session services on Redis (google-adk-community) and on SQLite (a rollback journal, synced).

The one on Redis keeps a session as one value and writes it whole with every event.
"""

from __future__ import annotations

from typing import Any

from tests.bench.arena import Arena
from tests.bench.peers.peer import InLoop, Opened, Peer

APP, USER = "bench", "user"


def at_work(arena: Arena, service: Any) -> Opened:
    """Any of its session services."""
    from google.adk.events import Event

    class Sessions(InLoop):
        def __init__(self) -> None:
            super().__init__(arena.runner())
            self._sessions: dict[str, Any] = {}

        def append(self, session: str, event: dict[str, Any]) -> None:
            if session not in self._sessions:
                self._sessions[session] = self.run(
                    service.create_session(app_name=APP, user_id=USER, session_id=session)
                )
            made = Event(author=event["actor"], invocation_id=event["id"], custom_metadata=event["data"])
            self.run(service.append_event(self._sessions[session], made))

        def read(self, session: str) -> int:
            return len(self.run(service.get_session(app_name=APP, user_id=USER, session_id=session)).events)

    return Sessions()


def on_redis(arena: Arena) -> Opened:
    from google.adk_community.sessions import RedisSessionService

    return at_work(arena, RedisSessionService(uri=arena.server("adk").url))


def on_sqlite(arena: Arena) -> Opened:
    from google.adk.sessions import DatabaseSessionService

    return at_work(arena, DatabaseSessionService(f"sqlite+aiosqlite:///{arena.folder / 'adk.db'}"))


ADK_REDIS = Peer("google-adk RedisSessionService", on_redis)
ADK_SQLITE = Peer("google-adk DatabaseSessionService, SQLite", on_sqlite)
