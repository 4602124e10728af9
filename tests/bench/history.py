"""Stores with a history, for rows that read: filled once, in a few sessions or many, and built again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from domain import SessionLog
from projections.drift import Validator
from projections.store import ProjectionStore
from tests.bench.arena import Arena, store_of
from tests.bench.events import fill, in_partition
from tests.bench.limits import decoded_whole, read_without_fold
from workers.recovery import Recovery


class History(Struct):
    """A store's log, its sessions, and how many events they hold."""

    log: SessionLog
    store: ProjectionStore
    sessions: list[str]
    events: int

    @classmethod
    def of(cls, arena: Arena, namespace: str, *, sessions: int, length: int, commit: int) -> History:
        """A store of its own on the row's server; of one namespace there is one, whoever asks first fills it.

        No worker runs: what is derived is made by `rebuild`.
        """
        log = arena.log(namespace)
        names = in_partition(log.keyspace, None, sessions)
        if log.head(names[0]) is None:
            fill(log, names, length, commit=commit)
        return cls(log, store_of(log), names, length * sessions)

    def rebuild(self) -> float:
        """Builds everything from the log by a recovery, in this process; events/s."""
        began = time.perf_counter()
        recovery = Recovery(self.store, self.log, who="recovery:bench", progress=lambda _: None)
        recovery.rebuild(range(self.log.keyspace.count))
        return self.events / (time.perf_counter() - began)

    def verify(self) -> float:
        """Verifies everything; events/s."""
        began = time.perf_counter()
        findings = list(Validator(self.store, self.log).everything())
        taken = time.perf_counter() - began
        if findings:
            raise AssertionError(f"{len(findings)} findings, such as {findings[0]}")
        return self.events / taken

    def read(self, decoded: Callable[[bytes], int] = decoded_whole) -> float:
        """Reads and decodes everything with redis-py, without a fold; events/s."""
        began = time.perf_counter()
        count = read_without_fold(self.log, self.sessions, decoded)
        if count != self.events:
            raise AssertionError(f"{count} events were read, not {self.events}")
        return self.events / (time.perf_counter() - began)

    def forget(self) -> None:
        """Deletes views, checkpoints, totals and cursors, so that the next rebuild writes them all."""
        client: Any = self.log.client
        for keys in self.log.keyspace.partitions:
            names = [name.decode() for name in client.zrange(keys.sessions, 0, -1)]
            agents = [name.decode() for name in client.zrange(keys.agents, 0, -1)]
            derived = [keys.session_view(name) for name in names] + [keys.checkpoints(name) for name in names]
            derived += [keys.agent_view(name) for name in agents]
            client.delete(*derived, keys.agents, keys.cursor(self.store.name, self.store.version))
