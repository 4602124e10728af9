"""`openai-agents`: its RedisSession, a list of JSON items a session, on the same kind of server."""

from __future__ import annotations

from typing import Any

from tests.bench.arena import Arena
from tests.bench.peers.peer import InLoop, Opened, Peer


def opened(arena: Arena) -> Opened:
    from agents.extensions.memory import RedisSession
    from redis.asyncio import Redis

    class Sessions(InLoop):
        def __init__(self) -> None:
            super().__init__(arena.runner())
            self._client = Redis.from_url(arena.server("openai").url)
            self._sessions: dict[str, Any] = {}
            arena.at_end(lambda: self.run(self._client.aclose()))

        def _session(self, session: str) -> Any:
            if session not in self._sessions:
                self._sessions[session] = RedisSession(session, redis_client=self._client)
            return self._sessions[session]

        def append(self, session: str, event: dict[str, Any]) -> None:
            self.run(self._session(session).add_items([event]))

        def read(self, session: str) -> int:
            return len(self.run(self._session(session).get_items()))

    return Sessions()


OPENAI_AGENTS = Peer("openai-agents RedisSession", opened)
