"""The store's epoch: raised when an operator accepts that commits were lost, so that everybody compares before going
on.

A loss is never accepted by itself. Until then producers that know of it are refused, session by session; all others
go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from domain.errors import NotFound
from domain.log.connection import raised, send
from domain.log.protocol import Command, parse_time
from domain.log.redis_streams import SessionLog
from domain.log.store import parse_info
from domain.log.witness import Loss


class Report(Struct, frozen=True):
    """What one witness reported lost of one session."""

    witness: str
    loss: Loss


class EpochState(Struct, frozen=True):
    """A store's epoch, the server that holds it now, and what witnesses reported lost.

    Commits that were acknowledged between `at_risk_from_ms` and `at_risk_to_ms` (server ms: the last event the server
    still has from before its start, and its start) may be lost without anybody who could name them. None for a server
    that was a replica: then it is not known since when it is the primary.
    """

    store: str
    epoch: int
    run_id: str
    replication_id: str
    at_risk_from_ms: int | None
    at_risk_to_ms: int | None
    reports: tuple[Report, ...]


class Epochs:
    """Shows and raises the epoch of the store that a log is open on. All methods may be repeated."""

    def __init__(self, log: SessionLog) -> None:
        self._log = log
        self._partitions = log.keyspace.partitions

    def show(self) -> EpochState:
        """How the store stands."""
        identity = self._log.identity
        (epoch,), info, now = self._ask(
            [
                ["HMGET", self._log.keyspace.store_meta, "epoch"],
                ["INFO", "server", "replication"],
                ["TIME"],
            ]
        )
        fields = parse_info(info)
        started_ms = parse_time(now) - 1000 * int(fields.get("uptime_in_seconds", 0))
        was_replica = fields.get("master_replid2", "").strip("0") != ""
        partitions = () if was_replica else range(len(self._partitions))
        times = (self._last_before(partition, started_ms) for partition in partitions)
        return EpochState(
            identity.store,
            int(epoch),
            fields.get("run_id", ""),
            fields.get("master_replid", ""),
            max((at for at in times if at is not None), default=None),
            None if was_replica else started_ms,
            tuple(self.reports()),
        )

    def reports(self) -> Iterator[Report]:
        """What witnesses reported lost and nobody accepted yet, by session."""
        replies = self._ask([["HGETALL", keys.lost] for keys in self._partitions])
        found = []
        for reply in replies:
            for name, report in zip(reply[::2], reply[1::2], strict=True):
                _, _, witness = name.decode().partition(" ")
                found.append(Report(witness, msgspec.json.decode(report, type=Loss)))
        yield from sorted(found, key=lambda report: (report.loss.session, report.witness))

    def accept(self, who: str) -> tuple[int, int]:
        """Raises the epoch; returns it, and how many reports were accepted with it. They go to the audit streams.

        Raises NotFound (NOTHING_LOST) if nothing was reported: there is nothing to accept. Unless partitions are at
        different epochs: then it broke off last time, and this finishes it.
        """
        meta = self._log.keyspace.store_meta
        here, *epochs = self._ask([["HGET", key, "epoch"] for key in [meta, *(keys.meta for keys in self._partitions)]])
        if len({here, *epochs}) == 1 and not any(True for _ in self.reports()):
            raise NotFound("NOTHING_LOST", "no witness reported a loss that is not accepted yet")
        return self.raised(who)

    def raised(self, who: str) -> tuple[int, int]:
        """As `accept`, whether something was reported or not."""
        store, meta = self._log.identity.store, self._log.keyspace.store_meta
        here, *epochs = self._ask([["HGET", key, "epoch"] for key in [meta, *(keys.meta for keys in self._partitions)]])
        epoch = max(int(value) for value in (here, *epochs)) + 1
        # The store's own first: a partition lets in who is at a newer epoch, never who is at an older one.
        self._ask([["HSET", meta, "epoch", epoch]])
        accepted = self._ask(
            [
                ["FCALL", "muster_raise_1", 3, keys.meta, keys.lost, keys.audit, store, epoch, who]
                for keys in self._partitions
            ]
        )
        return epoch, sum(accepted)

    def _last_before(self, partition: int, at_ms: int) -> int | None:
        """When the last feed entry before a time was written; found by halving, because times in a feed only grow."""
        feed = self._partitions[partition].feed
        low, high = 0, int(self._ask([["HGET", self._partitions[partition].meta, "total"]])[0] or 0)
        last: int | None = None
        while low < high:
            middle = (low + high + 1) // 2
            (entries,) = self._ask([["XREVRANGE", feed, middle, "-", "COUNT", 1]])
            if not entries:
                return last
            entry_id, fields = entries[0]
            position, written_ms = int(entry_id.partition(b"-")[0]), int(fields[1])
            if written_ms <= at_ms:
                last, low = written_ms, middle
            else:
                high = position - 1
        return last

    def _ask(self, commands: list[Command]) -> list[Any]:
        return [raised(reply) for reply in send(self._log.client, commands, self._log.connecting, wrote=False)]
