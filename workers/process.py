"""One worker process: the composition root of what consumes the feed, and its life from start to drain.

Started by `muster worker run`, `dev` and `demo` as `python -m workers.process`, with its settings in the
environment. SIGTERM or SIGINT ends it: the batches in flight are finished, the leases given back, exit 0. A second
signal ends it at once.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import time
from threading import Event

import redis
from dramatiq import Worker
from dramatiq.middleware import Retries

from domain.errors import Conflict, MusterError, Unavailable
from domain.log import SessionLog
from projections import catchup
from projections.catchup import Batch
from projections.rebuild import Rebuild
from projections.store import ProjectionStore
from projections.trim import trim_feeds
from workers.feed import QUEUE, FeedBroker, declare_project_actor
from workers.leasing import LeaseKeeper
from workers.partitions import HeldPartitions
from workers.settings import Settings, load

logger = logging.getLogger(__name__)

#: What a batch may fail with in the course of events: the lease went elsewhere, or the server went away. The feed is
#: read again, so a line in the log says enough; anything else is logged with its traceback.
PASSING = (Conflict, Unavailable, redis.RedisError, OSError)
#: How often a worker looks whether the server became another one, in seconds.
SERVER_LOOK_S = 1.0
#: How often a worker trims the feeds of its partitions, in seconds.
TRIM_EVERY_S = 10.0
#: How soon idle threads notice that they should stop, in ms.
IDLE_TIMEOUT_MS = 100


class Projector:
    """What the actor does with a batch."""

    def __init__(self, store: ProjectionStore, log: SessionLog, worker: str) -> None:
        self._store = store
        self._log = log
        self._worker = worker

    def project(self, batch: Batch) -> None:
        """Applies a batch; one without an end means that the partition is to be brought up to date from the log."""
        if batch.cursor_to is not None:
            projected = catchup.apply(self._store, self._log, batch)
            for session, position in projected.positions.items():
                self._log.witness.saw(session, position)  # a worker is a witness too, should the server lose its tail
            return
        rebuild = Rebuild(
            self._store,
            self._log,
            batch.partition,
            batch.token,
            who=self._worker,
            quarantine=False,
            renew=lambda: None,  # the lease keeper does
        )
        for _ in rebuild.everything():
            pass


def run(settings: Settings, stop: Event) -> None:
    """Runs a worker until `stop` is set, then drains it."""
    worker_id = f"{platform.node()}:{os.getpid()}:{os.urandom(3).hex()}"
    log = SessionLog.open(
        settings.connecting,
        environment=settings.environment,
        namespace=settings.namespace,
        partitions=settings.partitions,
    )
    with log:
        store = ProjectionStore(log.client, log.keyspace)
        partitions = HeldPartitions()
        keeper = LeaseKeeper(
            store,
            partitions,
            worker=worker_id,
            about={"pid": str(os.getpid()), "host": platform.node()},
            lease_ttl_ms=settings.worker.lease_ttl_ms,
            beat_ms=settings.worker.beat_ms,
        )
        broker = FeedBroker(store, partitions, client=log.client, middleware=[keeper, Retries()])
        declare_project_actor(broker, Projector(store, log, worker_id).project, throws=PASSING)
        worker = Worker(broker, queues={QUEUE}, worker_threads=settings.worker.threads, worker_timeout=IDLE_TIMEOUT_MS)
        worker.start()
        logger.info("worker %s runs", worker_id)
        next_trim = time.monotonic() + TRIM_EVERY_S
        while not stop.wait(SERVER_LOOK_S):
            look_at_server(log)
            if time.monotonic() >= next_trim:
                trim(store, partitions, keep_s=settings.worker.feed_keep_s)
                next_trim = time.monotonic() + TRIM_EVERY_S
        logger.info("worker %s drains", worker_id)
        worker.stop(timeout=int(settings.worker.drain_s * 1000))


def look_at_server(log: SessionLog) -> None:
    """Compares what this worker saw with the server, if that changed. What is lost is reported into the store."""
    try:
        log.compare_if_changed()
    except MusterError as error:
        logger.warning("the server changed and cannot be compared yet: %s", error)


def trim(store: ProjectionStore, partitions: HeldPartitions, *, keep_s: float) -> None:
    """Trims the feeds of the partitions held here. What cannot be done now is done later."""
    try:
        trim_feeds(store, partitions.tokens(), keep_s=keep_s)
    except (redis.RedisError, OSError) as error:
        logger.warning("the feed could not be trimmed: %s", error)


def main() -> int:
    """The process's entry point; returns its exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    stop = Event()

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    try:
        run(load(os.environ), stop)
    except MusterError as error:
        print(f"worker: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
