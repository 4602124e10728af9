"""Where a session is that was moved: a store, and how it is reached. It is what a seal says, so it holds no secret."""

from __future__ import annotations

from msgspec import Struct

from domain.log.address import without_password
from domain.log.keys import Keyspace
from domain.log.store import Identity


class Place(Struct, frozen=True):
    """A store, by its id; the address is what whoever wrote it called the server."""

    url: str
    environment: str
    namespace: str
    store: str

    @classmethod
    def of(cls, url: str, keyspace: Keyspace, identity: Identity) -> Place:
        """The place of an open store."""
        return cls(without_password(url), keyspace.environment, keyspace.namespace, identity.store)

    def __str__(self) -> str:
        return f"{self.url} {self.environment}:{self.namespace} {self.store}"


def parse_place(text: str) -> Place | None:
    """The inverse of `str`; None for what is none."""
    url, _, rest = text.partition(" ")
    names, _, store = rest.partition(" ")
    environment, _, namespace = names.partition(":")
    return Place(url, environment, namespace, store) if store and namespace else None
