"""A session as an aggregate of the library `eventsourcing`; a module of its own, since it finds classes by their names.

The only module that imports a peer when it is imported.
"""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.domain import Aggregate, event


class Session(Aggregate):  # type: ignore[misc]
    """What a session's view knows, as this library folds it."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.events = 0
        self.types: dict[str, int] = {}
        self.agents: dict[str, int] = {}
        self.entities: set[str] = set()

    @staticmethod
    def create_id(session: str) -> UUID:
        return uuid5(NAMESPACE_URL, session)

    @event("Happened")  # type: ignore[untyped-decorator]
    def happen(self, type: str, actor: str, data: dict[str, Any]) -> None:
        self.events += 1
        self.types[type] = self.types.get(type, 0) + 1
        self.agents[actor] = self.agents.get(actor, 0) + 1
        self.entities.update(data.get("change", {}).get("entity_ids", ()))
