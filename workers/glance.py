"""A server or a store, opened for one look: every command is sent once, and waits no longer than `health.timeout_s`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from domain.log import Connecting, connect
from domain.log.connection import raised, send
from domain.log.keys import Keyspace
from domain.log.store import open_commands, parse_open
from projections.store import ProjectionStore
from workers.readiness import quick
from workers.settings import Settings


@contextmanager
def opened_store(settings: Settings) -> Iterator[ProjectionStore]:
    """The store. Raises the typed error."""
    connecting = quick(settings)
    client = connect(connecting)
    try:
        asked = open_commands(settings.environment, settings.namespace)
        replies = send(client, asked, connecting, wrote=False, once=True)
        told = [raised(reply) for reply in replies]
        identity, _ = parse_open(told, settings.environment, settings.namespace, settings.partitions)
        yield ProjectionStore(client, Keyspace(settings.environment, settings.namespace, identity.partitions))
    finally:
        client.close()


@contextmanager
def asking(connecting: Connecting) -> Iterator[Callable[..., list[Any]]]:
    """Asks a server commands. Raises the typed error of the first that is refused."""
    client = connect(connecting)
    try:
        yield lambda *commands: [
            raised(reply) for reply in send(client, list(commands), connecting, wrote=False, once=True)
        ]
    finally:
        client.close()
