"""One projection that a worker process works on: its partitions, the keeper of their leases, its Dramatiq worker.

A batch that fails in the course of events, because the lease or the server went away, is read again. One that fails
otherwise, time and again, or that never ends, ends the process, as hard as if it were killed: then its leases run out,
that counts as a death, and whoever comes next is careful (projections/careful.py), until the commit is found that it
fails at.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final

import redis
from dramatiq import Worker
from dramatiq.middleware import Retries

from domain.errors import Conflict, Unavailable
from domain.log import SessionLog
from projections.catchup import Batch, Projected
from projections.own.catchup import OwnProjector
from projections.own.publishing import Publications
from projections.own.store import OwnStore
from projections.projection import Definition
from projections.store import ProjectionStore
from workers.feed import QUEUE, FeedBroker, declare_project_actor
from workers.halting import Halt
from workers.hindrances import Hindrances
from workers.leasing import LeaseKeeper
from workers.partitions import HeldPartitions
from workers.settings import Settings
from workers.telemetry.batches import Batches

logger = logging.getLogger(__name__)

#: What a batch may fail with in the course of events: the lease went elsewhere, or the server went away. The feed is
#: read again, so a line in the log now and then says enough; anything else is logged with its traceback.
PASSING: Final = (Conflict, Unavailable, redis.RedisError, OSError)
#: How often in a row a batch of one partition may fail with anything else.
FAILURES: Final = 3
#: The exit code of a process that ended because a batch did not, or never without failing.
STUCK_EXIT: Final = 70
#: How soon idle threads notice that they should stop, in ms.
IDLE_TIMEOUT_MS: Final = 100


class Following:
    """A projection that this process works on, in threads of its own, so that none waits for another's code."""

    def __init__(
        self,
        store: ProjectionStore,
        partitions: HeldPartitions,
        project: Callable[[Batch], Projected | None],
        worker_id: str,
        settings: Settings,
        *,
        about: dict[str, str] | None = None,
        is_paused: Callable[[], bool] = lambda: False,
        server_ms: Callable[[], int],
        halted: Callable[[Halt], None] = lambda _: None,
    ) -> None:
        self.store = store
        self.label = f"{store.name}@{store.version}"
        self._batches = Batches(self.label, slow_s=settings.worker.slow_batch_s, sample=settings.telemetry.sample)
        self._server_ms = server_ms
        self.partitions = partitions
        self.keeper = LeaseKeeper(
            store,
            partitions,
            worker=worker_id,
            about=about,
            lease_ttl_ms=settings.worker.lease_ttl_ms,
            beat_ms=settings.worker.beat_ms,
            is_paused=is_paused,
            halted=halted,
        )
        self._project = project
        # An own projection that fails to merge its views stands still alone; what fails to fold is parked anyway.
        self._ends_process = about is not None
        self._failures: dict[int, int] = {}
        self._hindrances = Hindrances(logger)
        broker = FeedBroker(store, partitions, client=store.client, middleware=[Retries()])
        declare_project_actor(broker, self._guarded, throws=PASSING)
        threads = settings.worker.threads if about is not None else 1
        self.worker = Worker(broker, queues={QUEUE}, worker_threads=threads, worker_timeout=IDLE_TIMEOUT_MS)

    def start(self) -> None:
        self.worker.start()
        self.keeper.start()

    def end_if_overdue(self, deadline_s: float) -> None:
        """Ends the process if a batch in flight did not get further for so long."""
        if overdue := self.partitions.overdue(deadline_s):
            end_at_once(f"nothing came of a batch for {deadline_s:g} s", overdue)

    def _guarded(self, batch: Batch) -> None:
        try:
            projected = self._project(batch)
        except PASSING as error:
            self._batches.failed(error)
            if isinstance(error, Conflict) and error.code == "LEASE_TAKEN":
                self.keeper.look_now()
            what = f"partition {batch.partition} of {self.store.owned} cannot be projected"
            self._hindrances.met("projection.hindered", what, error)
            raise
        except Exception as error:
            self._batches.failed(error)
            failures = self._failures[batch.partition] = self._failures.get(batch.partition, 0) + 1
            about = {"action": "projection.batch_failed", "projection": self.store.owned, "partition": batch.partition}
            logger.exception("a batch of %s failed, %d times in a row", self.store.owned, failures, extra=about)
            if failures >= FAILURES and self._ends_process:
                end_at_once("a batch fails time and again", [batch.partition])
            raise
        self._failures.pop(batch.partition, None)
        self._batches.done(batch, projected, self._server_ms())


def follow_own(log: SessionLog, definition: Definition, worker_id: str, settings: Settings) -> Following:
    """Has this process work on a projection of the user's own, which the store knows from then on."""
    publications = Publications(log.client, log.keyspace)
    publications.register(definition)
    store, partitions = OwnStore(log.client, log.keyspace, definition), HeldPartitions()
    return Following(
        store,
        partitions,
        OwnProjector(store, log, goes_on=partitions.goes_on).project,
        worker_id,
        settings,
        is_paused=lambda: publications.is_paused(definition),
        server_ms=log.clock.now,
    )


def end_at_once(why: str, partitions: list[int]) -> None:
    """Ends the process without giving anything back."""
    at = ", ".join(map(str, partitions))
    about = {"action": "projection.stuck", "partitions": at}
    logger.error("stuck: %s, in partitions %s; ending at once", why, at, extra=about)
    os._exit(STUCK_EXIT)
