"""The two ends of a migration: the store sessions come from, and the one they go to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from msgspec import Struct, structs

from domain.errors import Misconfigured, MusterError, Refused
from domain.log import Connecting, SessionLog
from domain.log.archive.place import Archive
from domain.log.connection import connection_error, send
from domain.log.place import Place
from domain.log.protocol import Command, parse_time
from projections.store import ProjectionStore
from workers.settings import Settings


class Address(Struct, frozen=True):
    """How a store is reached."""

    connecting: Connecting
    environment: str
    namespace: str
    #: Where commits lie that left the memory of either end.
    archive: Archive | None = None


def address(
    side: str,
    settings: Settings,
    *,
    url: str | None = None,
    environment: str | None = None,
    namespace: str | None = None,
) -> Address:
    """How an end (`from`, `to`) is reached, by the settings and what is said beyond them. Raises Refused (USAGE) where
    no server is named.
    """
    migrate = settings.migrate
    named = url or getattr(migrate, f"{side}_url")
    if named is None:
        raise Refused("USAGE", f"no server is named: --{side} URL, or MUSTER_MIGRATE__{side.upper()}_URL")
    connecting = structs.replace(
        settings.redis,
        url=named,
        username=getattr(migrate, f"{side}_username") or settings.redis.username,
        password=getattr(migrate, f"{side}_password") or settings.redis.password,
    )
    environment, namespace = environment or settings.environment, namespace or settings.namespace
    return Address(connecting, environment, namespace, settings.archive.opened())


class End:
    """One end: an open store. What is sent to it here may all be sent again."""

    def __init__(self, log: SessionLog) -> None:
        self.log = log
        self.keyspace = log.keyspace
        self.store = ProjectionStore(log.client, log.keyspace)
        self.place = Place.of(log.connecting.url, log.keyspace, log.identity)

    @property
    def identity(self) -> list[Any]:
        """What the functions are told of the store."""
        return [self.log.identity.store, self.log.identity.epoch]

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to commands, which are sent in one write on one connection; an error in place of a reply.

        Raises Unavailable.
        """
        found = send(self.log.client, list(commands), self.log.connecting, wrote=False) if commands else []
        return [connection_error(reply) if isinstance(reply, Exception) else reply for reply in found]

    def replies(self, commands: Sequence[Command]) -> list[Any]:
        """As `ask`; raises the first error."""
        found = self.ask(commands)
        for reply in found:
            if isinstance(reply, MusterError):
                raise reply
        return found

    def check_functions(self) -> None:
        """Raises Misconfigured (FUNCTIONS_MISSING) if the server has functions of an earlier release."""
        (reply,) = self.ask([["FCALL", "muster_yield_1", 0]])
        if isinstance(reply, MusterError) and reply.code == "FUNCTIONS_MISSING":
            raise Misconfigured(reply.code, f"{self.place.url}: {reply.cause}")

    def now_ms(self) -> int:
        """The server's clock."""
        return parse_time(self.ask([["TIME"]])[0])

    def note(self, who: str, what: str, **fields: Any) -> None:
        """Writes into the store's audit stream."""
        told = [part for name, value in fields.items() for part in (name, str(value))]
        self.ask([["XADD", self.keyspace.audit, "*", "who", who, "what", what, *told]])


class Ends(Struct, frozen=True):
    """Both of them."""

    source: End
    target: End


@contextmanager
def one_end(at: Address) -> Iterator[End]:
    """Opens one of them alone."""
    with _log(at) as log:
        yield End(log)


@contextmanager
def opened(source: Address, target: Address) -> Iterator[Ends]:
    """Opens both ends. Raises Refused (USAGE) if they are one store, and as `SessionLog.open`."""
    with _log(source) as source_log, _log(target) as target_log:
        if source_log.identity.store == target_log.identity.store:
            raise Refused("USAGE", f"source and target are the same store, {source_log.identity.store}")
        ends = Ends(End(source_log), End(target_log))
        for end in (ends.source, ends.target):
            end.check_functions()
        yield ends


def _log(address: Address) -> SessionLog:
    return SessionLog.open(
        address.connecting, environment=address.environment, namespace=address.namespace, archive=address.archive
    )
