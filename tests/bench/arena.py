"""Where a row is measured: servers of its own, stores and logs on them, a folder, and how much is to be done.

Everything that is opened here is closed when the row is over, in the opposite order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar

import redis

from domain import AsyncSessionLog, SessionLog
from domain.log import connect, create_store
from domain.log.connection import Connecting
from projections.store import ProjectionStore
from workers.embedded import EmbeddedServer

T = TypeVar("T")

Fsync = Literal["everysec", "always"]


class Effort(Enum):
    """How much is done: the share of a row's full size, and the rounds at most."""

    FULL = (1.0, 5)
    QUICK = (0.15, 3)
    #: Only to show that a row can run.
    SMOKE = (0.002, 1)

    @property
    def share(self) -> float:
        return self.value[0]

    @property
    def rounds(self) -> int:
        return self.value[1]


class Arena:
    """What a contestant is given to prepare itself."""

    def __init__(self, effort: Effort, folder: Path, ending: ExitStack, say: Callable[[str], None]) -> None:
        self.effort = effort
        self.folder = folder
        self.say = say
        self._ending = ending
        self._servers: dict[str, EmbeddedServer] = {}

    def many(self, full: int, *, least: int = 1, step: int = 1, smoke: int | None = None) -> int:
        """How much of something a round has, by the effort: a multiple of `step`, and not below `least`, the size below
        which what is measured would be something else; `smoke` may be.
        """
        if smoke is not None and self.effort is Effort.SMOKE:
            return smoke
        wanted = max(least, int(full * self.effort.share))
        return max(step, wanted // step * step)

    def whole(self, size: int, *, smoke: int) -> int:
        """A size that the row is about: a quick run has it too, only a smoke is smaller."""
        return smoke if self.effort is Effort.SMOKE else size

    def keep(self, context: AbstractContextManager[T]) -> T:
        """Enters a context that is left when the row is over."""
        return self._ending.enter_context(context)

    def at_end(self, action: Callable[[], object]) -> None:
        """Has something done when the row is over."""
        self._ending.callback(action)

    def server(self, name: str = "", *, appendfsync: Fsync = "everysec") -> EmbeddedServer:
        """A server of the row's, with an append-only file; of one name and setting there is one."""
        key = f"server-{appendfsync}-{name}"
        if key not in self._servers:
            server = self.keep(EmbeddedServer(self.folder / key, appendfsync=appendfsync))
            with closing(redis.Redis.from_url(server.url)) as client:
                # A rewrite would begin in the middle of whichever contestant made the file long enough.
                client.config_set("auto-aof-rewrite-percentage", 0)
            self._servers[key] = server
        return self._servers[key]

    def client(self, *, server: str = "", appendfsync: Fsync = "everysec") -> redis.Redis:
        """redis-py as it comes, on a server of the row's."""
        return self.keep(closing(redis.Redis.from_url(self.server(server, appendfsync=appendfsync).url)))

    def store(self, namespace: str = "main", *, server: str = "", appendfsync: Fsync = "everysec") -> str:
        """Makes a store on a server of the row's, unless it is there; the server's URL."""
        url = self.server(server, appendfsync=appendfsync).url
        with closing(connect(Connecting(url))) as client:
            create_store(client, namespace=namespace)
        return url

    def log(
        self,
        namespace: str = "main",
        *,
        server: str = "",
        appendfsync: Fsync = "everysec",
        durability: str = "memory",
    ) -> SessionLog:
        """A blocking log of a store of the row's."""
        url = self.store(namespace, server=server, appendfsync=appendfsync)
        return self.keep(SessionLog.open(url, namespace=namespace, durability=durability))

    def async_log(
        self, runner: asyncio.Runner, namespace: str = "main", *, appendfsync: Fsync = "everysec"
    ) -> AsyncSessionLog:
        """A log for asyncio, in the loop of this runner."""
        url = self.store(namespace, appendfsync=appendfsync)
        log = runner.run(AsyncSessionLog.open(url, namespace=namespace))
        self.at_end(lambda: runner.run(log.close()))
        return log

    def runner(self) -> asyncio.Runner:
        """An event loop of the contestant's own; it stands still while others are measured."""
        return self.keep(asyncio.Runner())


def store_of(log: SessionLog) -> ProjectionStore:
    """What is derived from a log."""
    return ProjectionStore(log.client, log.keyspace)


def allocated(client: redis.Redis) -> int:
    """Bytes the server has allocated, without what connections and the append-only file take for a moment."""
    info: Any = client.info("memory")
    return int(info["used_memory"]) - int(info["mem_clients_normal"]) - int(info["mem_aof_buffer"])


def wait_until(is_so: Callable[[], bool], patience_s: float = 300, every_s: float = 0.002) -> None:
    """Waits for something that others do. Raises TimeoutError."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience_s:g} s")
        time.sleep(every_s)
