"""Shares the partitions out among the worker processes that live, and keeps the leases of this one.

Every beat: a sign of life, all leases renewed, then partitions given back or claimed until this process holds its
fair share. A process that dies stops beating; its sign of life and its leases pass their deadlines, and the others
take its partitions.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Any

import redis

from domain.log.keys import Keyspace
from domain.telemetry import LEASES_LOST
from projections.lease import Leases
from projections.store import ProjectionStore
from workers.halting import FIELDS, Halt, halt_of
from workers.hindrances import Hindrances
from workers.partitions import HeldPartitions
from workers.telemetry.counting import count

logger = logging.getLogger(__name__)

#: After so many holders of a partition that died in a row, its next batch is worked on carefully.
CAREFUL_AFTER_CRASHES = 2
#: A worker that has given no sign of life for so many beats is counted out.
MISSED_BEATS = 4
#: How many times sooner than else a beat comes for a while after a lease was seen taken.
SOONER = 16


class LeaseKeeper:
    """Keeps the leases of one projection, beside its Dramatiq worker, and while that drains, until all is given back.

    `about` is what the process says of itself; only the keeper of the built-in projection says it. While the projection
    is paused, this process holds nothing of it. `halted` is told on each beat on which the fleet is found stopped.
    """

    def __init__(
        self,
        store: ProjectionStore,
        partitions: HeldPartitions,
        *,
        worker: str,
        about: dict[str, str] | None,
        lease_ttl_ms: int,
        beat_ms: int,
        is_paused: Callable[[], bool] = lambda: False,
        halted: Callable[[Halt], None] = lambda _: None,
    ) -> None:
        self._client = store.client
        self._keyspace = store.keyspace
        self._partitions = partitions
        self._worker = worker
        self._about = about
        self._living = self._keyspace.workers if about is not None else self._keyspace.workers_of(store.owned)
        self._is_paused = is_paused
        self._halted = halted
        self._leases = Leases(store.client, store.keyspace, worker, owned=store.owned)
        self._lease_ttl_ms = lease_ttl_ms
        self._beat_ms = beat_ms
        self._hindrances = Hindrances(logger)
        self._stopping = Event()
        self._in_doubt = Event()
        self._thread = Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def pace(self, *, lease_ttl_ms: int, beat_ms: int) -> None:
        """How long leases last and how often there is a beat; there is one at once, since leases that were taken for
        less may not last until the next.
        """
        self._lease_ttl_ms, self._beat_ms = lease_ttl_ms, beat_ms
        self.look_now()

    def look_now(self) -> None:
        """A lease was seen taken: the next beats come soon, so that a partition that a recovery held for a moment is
        not waited for longer than that.
        """
        self._in_doubt.set()

    def give_back(self) -> int:
        """Ends the beats and gives back every lease held here, and the sign of life; returns how many leases it were.

        A batch still in flight is refused from then on. Where the server is away, leases run out by themselves.
        """
        self._stopping.set()
        self._in_doubt.set()
        self._thread.join(self._beat_ms / 1000)
        given = 0
        try:
            for partition, token in self._partitions.tokens().items():
                self._leases.release(partition, token)
                given += 1
            self._client.zrem(self._living, self._worker)
            if self._about is not None:
                self._client.delete(self._keyspace.worker(self._worker))
        except (redis.RedisError, OSError) as error:
            about = {"action": "lease.not_given_back"}
            logger.warning("could not give the leases back, they run out by themselves: %s", error, extra=about)
        return given

    def _run(self) -> None:
        soon = 0
        while not self._stopping.is_set():
            try:
                self._beat()
            except (redis.RedisError, OSError) as error:
                self._hindrances.met("lease.unkept", "leases cannot be kept", error)
            except Exception:
                # A keeper that ended would leave a worker that runs and holds nothing.
                logger.exception("a beat failed", extra={"action": "lease.beat_failed"})
            if self._in_doubt.wait(self._beat_ms / 1000 / (SOONER if soon else 1)):
                self._in_doubt.clear()
                soon = 2 * SOONER  # two beats' time
            soon = max(0, soon - 1)

    def _beat(self) -> None:
        tokens = self._partitions.tokens()
        for partition in self._leases.renew(tokens, ttl_ms=self._lease_ttl_ms):
            count(LEASES_LOST)
            about = {"action": "lease.lost", "partition": partition}
            logger.info("the lease of partition %d was taken over", partition, extra=about)
            self._partitions.drop(partition, tokens[partition])
        living, halt = self._sign_of_life(sorted(self._partitions.tokens()))
        about = {"action": "lease.beat", "held": len(tokens), "workers": len(living)}
        logger.debug("%d leases are kept, %d workers live", len(tokens), len(living), extra=about)
        if halt is not None:
            self._halted(halt)
        if halt is not None or self._partitions.is_closed or self._is_paused():
            # What is idle goes at once; what is in flight is kept until it is done.
            self._release(self._partitions.leave(len(tokens)))
            return
        share = fair_share(self._keyspace.count, self._worker, living)
        surplus = len(self._partitions.tokens()) - share
        if surplus > 0:
            self._release(self._partitions.leave(surplus))
        else:
            self._partitions.stay()
            self._claim(-surplus)

    def _sign_of_life(self, held: list[int]) -> tuple[list[str], Halt | None]:
        """Says that this process lives and what it holds; returns all that live, by name, and the stop that stands."""
        keys, fields = [self._living], list[str]()
        if self._about is not None:
            keys.append(self._keyspace.worker(self._worker))
            about = {**self._about, "partitions": ",".join(map(str, held))}
            fields = [part for pair in about.items() for part in pair]
        lifetime_ms = MISSED_BEATS * self._beat_ms
        pipe = self._client.pipeline(transaction=False)
        pipe.fcall("muster_live_1", len(keys), *keys, self._worker, lifetime_ms, *fields)
        pipe.hmget(self._keyspace.halt, *FIELDS)
        living, halt = pipe.execute()
        return sorted(name.decode() for name in living), halt_of(halt)

    def _release(self, tokens: dict[int, str]) -> None:
        for partition, token in tokens.items():
            about = {"action": "lease.given_back", "partition": partition}
            logger.debug("partition %d is given back", partition, extra=about)
            self._leases.release(partition, token)

    def _claim(self, count: int) -> None:
        if not count:
            return
        seconds, micros = self._client.time()
        now = seconds * 1000 + micros // 1000
        free = [p for p, owner in enumerate(self._leases.owners()) if owner is None or owner[1] <= now]
        # In an order of its own, so that several processes that see the same free partitions do not all try the
        # same ones.
        random.shuffle(free)
        for partition in free[:count]:
            token = self._leases.claim(partition, ttl_ms=self._lease_ttl_ms)
            if token is not None:
                crashes = self._leases.crashes(partition)
                if crashes:
                    about = {"action": "lease.inherited", "partition": partition, "crashes": crashes}
                    text = "partition %d comes from a worker that died, %d in a row"
                    logger.warning(text, partition, crashes, extra=about)
                logger.debug(
                    "partition %d is held", partition, extra={"action": "lease.claimed", "partition": partition}
                )
                self._partitions.adopt(partition, token, careful=crashes >= CAREFUL_AFTER_CRASHES)


def fair_share(partitions: int, worker: str, living: Sequence[str]) -> int:
    """How many partitions a worker should hold among those that live, in an order that all of them agree on."""
    each, more = divmod(partitions, len(living))
    return each + (living.index(worker) < more)


def living_workers(client: Any, keyspace: Keyspace) -> list[dict[str, Any]]:
    """The worker processes that gave a sign of life lately."""
    seconds, micros = client.time()
    now = seconds * 1000 + micros // 1000
    names = [name.decode() for name in client.zrangebyscore(keyspace.workers, f"({now}", "+inf")]
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.hgetall(keyspace.worker(name))
    found = []
    for name, fields in zip(names, pipe.execute() if names else [], strict=True):
        if fields:
            about = {key.decode(): value.decode() for key, value in fields.items()}
            partitions = [int(partition) for partition in about.get("partitions", "").split(",") if partition]
            found.append({**about, "worker": name, "partitions": partitions})
    return found
