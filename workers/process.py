"""One worker process: the composition root of what consumes the feed, and its life from start to drain.

Started by `muster worker run`, `dev` and `demo` as `python -m workers.process`, with its settings in the
environment. SIGTERM or SIGINT ends it in phases (workers/shutdown.py): the batches in flight are finished, the leases
given back, exit 0; past the deadline it is forced, exit 10. A second signal ends it at once.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from threading import Event, Thread

import redis
from dramatiq import Worker
from dramatiq.middleware import Retries

from domain.errors import Conflict, MusterError, Unavailable
from domain.log import SessionLog
from projections import catchup
from projections.catchup import Batch
from projections.own.catchup import OwnProjector
from projections.own.publishing import Publications
from projections.own.store import OwnStore
from projections.projection import Definition
from projections.rebuild import Rebuild
from projections.store import ProjectionStore
from projections.trim import trim_feeds
from workers.feed import QUEUE, FeedBroker, declare_project_actor
from workers.hindrances import Hindrances
from workers.leasing import LeaseKeeper
from workers.partitions import HeldPartitions
from workers.registered import registered
from workers.settings import Settings, load
from workers.shutdown import Shutdown

logger = logging.getLogger(__name__)

#: What a batch may fail with in the course of events: the lease went elsewhere, or the server went away. The feed is
#: read again, so a line in the log now and then says enough; anything else is logged with its traceback.
PASSING = (Conflict, Unavailable, redis.RedisError, OSError)
#: How often a worker looks whether the server became another one, in seconds.
SERVER_LOOK_S = 1.0
#: How often a worker trims the feeds of its partitions, in seconds.
TRIM_EVERY_S = 10.0
#: How long the idle threads of a drained worker are waited for, in ms.
STOP_TIMEOUT_MS = 5_000
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


def run(settings: Settings, definitions: Sequence[Definition], stop: Event) -> int:
    """Runs a worker until `stop` is set, then drains it; returns the exit code: 0, or 10 if it was forced."""
    worker_id = f"{platform.node()}:{os.getpid()}:{os.urandom(3).hex()}"
    log = SessionLog.open(
        settings.connecting,
        environment=settings.environment,
        namespace=settings.namespace,
        partitions=settings.partitions,
    )
    with log:
        store = ProjectionStore(log.client, log.keyspace)
        about = {"pid": str(os.getpid()), "host": platform.node()}
        sessions = Following(store, Projector(store, log, worker_id).project, worker_id, settings, about=about)
        own = [follow_own(log, definition, worker_id, settings) for definition in definitions]
        following = [sessions, *own]
        for one in following:
            one.start()
        logger.info("worker %s runs", worker_id)
        # Beside the wait for the signal: a server that is away must not hold the shutdown up.
        Thread(
            target=look_after, args=(log, sessions, own, worker_id, settings, stop), name="housekeeper", daemon=True
        ).start()
        stop.wait()
        shutdown = Shutdown(*(one.partitions for one in following), drain_s=settings.worker.drain_s, say=say)
        drained = shutdown.drain()
        shutdown.clean_up(lambda: sum(one.keeper.give_back() for one in following))
        code = shutdown.complete()
        if not drained:
            # A thread cannot be ended from outside, only with its process.
            sys.stderr.flush()
            os._exit(code)
        for one in following:
            one.worker.stop(timeout=STOP_TIMEOUT_MS)
    return code


class Following:
    """One projection that this process works on: its partitions, the keeper of their leases, its Dramatiq worker.

    Each has threads of its own, so that none waits for another's code.
    """

    def __init__(
        self,
        store: ProjectionStore,
        project: Callable[[Batch], None],
        worker_id: str,
        settings: Settings,
        *,
        about: dict[str, str] | None = None,
        is_paused: Callable[[], bool] = lambda: False,
    ) -> None:
        self.store = store
        self.partitions = HeldPartitions()
        self.keeper = LeaseKeeper(
            store,
            self.partitions,
            worker=worker_id,
            about=about,
            lease_ttl_ms=settings.worker.lease_ttl_ms,
            beat_ms=settings.worker.beat_ms,
            is_paused=is_paused,
        )
        broker = FeedBroker(store, self.partitions, client=store.client, middleware=[Retries()])
        hindrances = Hindrances(logger)

        def project_aloud(batch: Batch) -> None:
            try:
                project(batch)
            except PASSING as error:
                hindrances.met(f"partition {batch.partition} of {store.owned} cannot be projected", error)
                raise

        declare_project_actor(broker, project_aloud, throws=PASSING)
        threads = settings.worker.threads if about is not None else 1
        self.worker = Worker(broker, queues={QUEUE}, worker_threads=threads, worker_timeout=IDLE_TIMEOUT_MS)

    def start(self) -> None:
        self.worker.start()
        self.keeper.start()


def follow_own(log: SessionLog, definition: Definition, worker_id: str, settings: Settings) -> Following:
    """Has this process work on a projection of the user's own, which the store knows from then on."""
    publications = Publications(log.client, log.keyspace)
    publications.register(definition)
    store = OwnStore(log.client, log.keyspace, definition)
    project = OwnProjector(store, log).project
    return Following(store, project, worker_id, settings, is_paused=lambda: publications.is_paused(definition))


def say(line: str) -> None:
    """A line of progress."""
    print(f"worker {os.getpid()}: {line}", file=sys.stderr, flush=True)


def look_after(
    log: SessionLog, sessions: Following, own: Sequence[Following], worker_id: str, settings: Settings, stop: Event
) -> None:
    """What a worker does now and then beside its batches, until it is stopped."""
    next_trim = time.monotonic() + TRIM_EVERY_S
    publications, hindrances = Publications(log.client, log.keyspace), Hindrances(logger)
    caught_up: dict[OwnStore, dict[int, int] | None] = {one.store: {} for one in own if isinstance(one.store, OwnStore)}
    while not stop.wait(SERVER_LOOK_S):
        try:
            look_at_server(log)
            for store, totals in caught_up.items():
                if totals is not None:
                    caught_up[store] = publications.offer(store, worker_id, totals)
            if time.monotonic() >= next_trim:
                next_trim = time.monotonic() + TRIM_EVERY_S
                keep = {"keep_s": settings.worker.feed_keep_s, "pin_s": settings.worker.feed_pin_s}
                trim_feeds(sessions.store, sessions.partitions.tokens(), **keep)
        except (redis.RedisError, OSError) as error:
            hindrances.met("the feed cannot be trimmed nor a projection published", error)
        except Exception:
            logger.exception("looking after the server failed")


def look_at_server(log: SessionLog) -> None:
    """Compares what this worker saw with the server, if that changed. What is lost is reported into the store."""
    try:
        log.compare_if_changed()
    except MusterError as error:
        logger.warning("the server changed and cannot be compared yet: %s", error)


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
        settings = load(os.environ)
        return run(settings, registered(settings), stop)
    except MusterError as error:
        print(f"worker: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
