"""One worker process: the composition root of what consumes the feed, and its life from start to drain.

Started by `muster worker run`, `dev` and `demo` as `python -m workers.process`, with its settings in the
environment. SIGTERM or SIGINT ends it in phases (workers/shutdown.py): the batches in flight are finished, the leases
given back, exit 0; past the deadline it is forced, exit 10. A second signal ends it at once. A stop of the whole fleet
(workers/halting.py) ends it in the same phases, exit 75.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event, Thread

import redis

from domain.errors import MusterError
from domain.log import SessionLog
from domain.log.connection import connection_error
from domain.log.contract import CommitReader
from projections import catchup
from projections.careful import CarefulReader
from projections.catchup import Batch, Projected
from projections.own.publishing import Publications
from projections.own.store import OwnStore
from projections.projection import Definition
from projections.rebuild import Rebuild
from projections.store import ProjectionStore
from projections.trim import trim_feeds
from workers import logs
from workers.archiving.choosing import Keeping
from workers.archiving.recurring import Archiving
from workers.following import Following, follow_own
from workers.halting import DRAINING, FORCED, HALTED_EXIT, STOPPED, Halt, Halting
from workers.hindrances import Hindrances
from workers.jobs import JobRunner
from workers.memory import MemoryWatch, Watermarks
from workers.partitions import HeldPartitions
from workers.patience import Patience
from workers.registered import registered
from workers.reloading import FOLLOWS, InForce, follow_stdin
from workers.schedule import Schedule
from workers.settings import Settings, load
from workers.shutdown import Shutdown
from workers.silences import Silences
from workers.stopping import Stop
from workers.telemetry.counting import tell_held
from workers.telemetry.telling import Telemetry

#: By its own name: the process runs it as __main__.
logger = logging.getLogger("workers.process")

#: How often a worker looks whether the server became another one, in seconds.
SERVER_LOOK_S = 1.0
#: How often a worker trims the feeds of its partitions, in seconds.
TRIM_EVERY_S = 10.0
#: How long the idle threads of a drained worker are waited for, in ms.
STOP_TIMEOUT_MS = 5_000


class Projector:
    """What the actor does with a batch."""

    def __init__(
        self, store: ProjectionStore, log: SessionLog, worker: str, *, goes_on: Callable[[int], None] = lambda _: None
    ) -> None:
        self._store = store
        self._log = log
        self._worker = worker
        self._goes_on = goes_on

    def project(self, batch: Batch) -> Projected | None:
        """Applies a batch; one without an end means that the partition is to be brought up to date from the log.

        One that names sessions to be tried again does that alone. Neither is told of (None).
        """
        goes_on = partial(self._goes_on, batch.partition)
        if batch.cursor_to is not None:
            projected = catchup.apply(self._store, self._log, batch, goes_on=goes_on)
            for session, position in projected.positions.items():
                self._log.witness.saw(session, position)  # a worker is a witness too, should the server lose its tail
            return projected
        log: CommitReader = self._log
        if batch.careful:
            log = CarefulReader(self._store, log, batch.partition, batch.token)
        rebuild = Rebuild(
            self._store,
            log,
            batch.partition,
            batch.token,
            who=self._worker,
            quarantine=False,
            retry=bool(batch.retry),
            renew=goes_on,  # the lease itself is renewed by its keeper
        )
        if batch.retry:
            for _ in rebuild.sessions(batch.retry):
                pass
            rebuild.totals()
            return None
        for _ in rebuild.everything():
            goes_on()
        return None


def run(in_force: InForce, definitions: Sequence[Definition], stop: Event) -> int:
    """Runs a worker until `stop` is set or the fleet is stopped, then drains it; returns the exit code: 0, 10 if it was
    forced, 75 if the fleet is stopped.
    """
    settings = in_force.settings
    worker_id = f"{platform.node()}:{os.getpid()}:{os.urandom(3).hex()}"
    telemetry = Telemetry.begin(settings, worker_id)  # first: what is opened from here on tells it
    log = SessionLog.open(
        settings.connecting,
        environment=settings.environment,
        namespace=settings.namespace,
        partitions=settings.partitions,
        archive=settings.archive.opened(),
    )
    with log:
        store = ProjectionStore(log.client, log.keyspace)
        halted = Halted(Halting(log.client, log.keyspace), worker_id, stop)
        if halted.is_told():
            return HALTED_EXIT
        about = {"pid": str(os.getpid()), "host": platform.node(), **Patience.of(settings.sessions).told}
        partitions = HeldPartitions()
        project = Projector(store, log, worker_id, goes_on=partitions.goes_on).project
        sessions = Following(
            store,
            partitions,
            project,
            worker_id,
            settings,
            about=about,
            halted=halted,
            server_ms=log.clock.now,
        )
        own = [follow_own(log, definition, worker_id, settings) for definition in definitions]
        following = [sessions, *own]
        tell_held(lambda: {one.label: len(one.partitions.tokens()) for one in following})
        for one in following:
            one.start()
        logger.info("worker %s runs", worker_id, extra={"action": "worker.runs"})
        # Beside the wait for the signal: a server that is away must not hold the shutdown up.
        marks = settings.memory
        memory = MemoryWatch(store, log.identity, Watermarks(marks.early, marks.slow, marks.refuse))
        housekeeping = (log, sessions, own, worker_id, in_force, memory, stop)
        Thread(target=look_after, args=housekeeping, name="housekeeper", daemon=True).start()
        if settings.archive.url is not None and settings.archive.write:
            keeping = Keeping(settings.archive.hot_events, settings.archive.after_end_s)
            archiving = Archiving(log, store, partitions.tokens, keeping, memory, every_s=settings.archive.every_s)
            archiving.start(stop)
        Thread(target=end_if_stuck, args=(following, in_force, stop), name="deadline", daemon=True).start()
        jobs = Jobs(settings, log, definitions, worker_id)
        jobs.start()
        in_force.tell(lambda changed: take(changed, following, jobs, about))
        stop.wait()
        jobs.stop_soon()
        shutdown = Shutdown(*(one.partitions for one in following), drain_s=in_force.settings.worker.drain_s, say=say)
        drained = shutdown.drain()
        shutdown.clean_up(lambda: sum(one.keeper.give_back() for one in following))
        code = shutdown.complete()
        if not drained:
            halted.note(FORCED)
            # A thread cannot be ended from outside, only with its process.
            sys.stderr.flush()
            os._exit(code)
        for one in following:
            one.worker.stop(timeout=STOP_TIMEOUT_MS)
        jobs.stop()
        halted.note(STOPPED)
    telemetry.close()
    return HALTED_EXIT if halted.halt is not None else code


def take(settings: Settings, following: Sequence[Following], jobs: Jobs, about: dict[str, str]) -> None:
    """Settings changed: what asks for them at each turn has them already, these are told, and the others by the next
    sign of life.
    """
    about.update(Patience.of(settings.sessions).told)
    for one in following:
        one.keeper.pace(lease_ttl_ms=settings.worker.lease_ttl_ms, beat_ms=settings.worker.beat_ms)
    jobs.take(settings)


class Halted:
    """What this process does about a stop of the fleet: it stops, and says how far it is."""

    def __init__(self, halting: Halting, worker_id: str, stop: Event) -> None:
        self._halting = halting
        self._worker_id = worker_id
        self._stop = stop
        self.halt: Halt | None = None

    def is_told(self) -> bool:
        """Whether the fleet is stopped now; says so."""
        halt = self._halting.standing()
        if halt is not None:
            say(str(halt.error()))
        return halt is not None

    def __call__(self, halt: Halt) -> None:
        """The keeper of the leases saw it."""
        if self.halt is None:
            self.halt = halt
            say(halt.told)
            self.note(DRAINING)
            self._stop.set()

    def note(self, phase: str) -> None:
        """Says how far this process is, to whoever waits for it."""
        if self.halt is None:
            return
        try:
            self._halting.note(self._worker_id, phase)
        except (redis.RedisError, OSError) as error:
            about = {"action": "worker.halt_untold", "phase": phase}
            logger.warning("that this worker is %s could not be said: %s", phase, error, extra=about)


class Jobs:
    """The jobs side of a worker process: what is sent to it, and the schedule. Nothing where jobs are off."""

    def __init__(self, settings: Settings, log: SessionLog, definitions: Sequence[Definition], worker_id: str) -> None:
        self._runner: JobRunner | None = None
        if settings.jobs.url is not None:
            self._runner = JobRunner(settings, log, definitions, worker_id)
            every_s = settings.jobs.verify_every_s
            self._schedule = Schedule(self._runner.queue, log.client, log.keyspace, verify_every_s=every_s)

    def start(self) -> None:
        if self._runner is not None:
            self._runner.start()
            self._schedule.start()

    def take(self, settings: Settings) -> None:
        """Settings of jobs changed."""
        if self._runner is not None:
            self._runner.queue.take(settings.jobs)
            self._schedule.verify_every(settings.jobs.verify_every_s)

    def stop_soon(self) -> None:
        """Has running jobs stop after the partition they are in."""
        if self._runner is not None:
            self._runner.stop_soon()

    def stop(self) -> None:
        if self._runner is not None:
            self._schedule.stop()
            self._runner.stop(STOP_TIMEOUT_MS)


def say(line: str) -> None:
    """A line about how this process ends."""
    logger.info("%s", line, extra={"action": "worker.shutdown"})


def end_if_stuck(following: Sequence[Following], in_force: InForce, stop: Event) -> None:
    """Ends the process when a batch does not get further, until it is stopped: then the drain has its own deadline.

    As hard as if it were killed, so that the leases run out and it counts as a death: whoever comes next is careful. A
    thread of its own, because whatever asks the server may wait for it. It cannot help where a library never gives the
    interpreter back; then the leases run out too, because their keeper is held up as well.
    """
    while not stop.wait(min(1.0, in_force.settings.worker.batch_deadline_s / 4)):
        deadline_s = in_force.settings.worker.batch_deadline_s
        for one in following:
            one.end_if_overdue(deadline_s)


def look_after(
    log: SessionLog,
    sessions: Following,
    own: Sequence[Following],
    worker_id: str,
    in_force: InForce,
    memory: MemoryWatch,
    stop: Event,
) -> None:
    """What a worker does now and then beside its batches, until it is stopped."""
    next_trim = time.monotonic() + TRIM_EVERY_S
    publications, hindrances = Publications(log.client, log.keyspace), Hindrances(logger)
    silences = Silences(log, sessions.store, in_force)
    caught_up: dict[OwnStore, dict[int, int] | None] = {one.store: {} for one in own if isinstance(one.store, OwnStore)}
    while not stop.wait(SERVER_LOOK_S):
        try:
            look_at_server(log)
            # First what frees memory: what comes after it may need some.
            memory.look(sessions.partitions.tokens())
            if time.monotonic() >= next_trim:
                next_trim = time.monotonic() + TRIM_EVERY_S
                worker = in_force.settings.worker
                keep = {"keep_s": worker.feed_keep_s, "pin_s": worker.feed_pin_s}
                trim_feeds(sessions.store, sessions.partitions.tokens(), **keep)
            for store, totals in caught_up.items():
                if totals is not None:
                    caught_up[store] = publications.offer(store, worker_id, totals)
            silences.look(list(sessions.partitions.tokens()))
        except (MusterError, redis.RedisError, OSError) as error:
            silences.broke()
            hindrances.met(
                "worker.chores_hindered",
                "feeds cannot be trimmed, projections published, nor what idles be ended",
                error,
            )
        except Exception:
            silences.broke()
            logger.exception("looking after the server failed", extra={"action": "worker.chores_failed"})


def look_at_server(log: SessionLog) -> None:
    """Compares what this worker saw with the server, if that changed. What is lost is reported into the store."""
    try:
        log.compare_if_changed()
    except MusterError as error:
        about = {"action": "worker.not_compared", "code": error.code}
        logger.warning("the server changed and cannot be compared yet: %s", error, extra=about)


def main() -> int:
    """The process's entry point; returns its exit code."""
    stop, was_told = Stop(), Stop()

    def handle(number: int, _: object) -> None:
        if was_told.is_set():
            os._exit(128 + number)
        was_told.set()  # `stop` may be set already, by a stop of the fleet
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    logs.switch_on_signal(signal.SIGUSR1)
    try:
        in_force = InForce(load(os.environ))
    except MusterError as error:
        print(f"worker: {error}", file=sys.stderr)  # how lines are to look is not known either
        return error.exit_code
    with logs.logging_as(in_force.settings):
        return run_or_say_why_not(in_force, stop)


def run_or_say_why_not(in_force: InForce, stop: Event) -> int:
    """As `run`; what keeps it from running is logged."""
    try:
        if FOLLOWS in sys.argv[1:]:
            follow_stdin(in_force, say)
        return run(in_force, registered(in_force.settings), stop)
    except (MusterError, redis.RedisError, OSError) as error:
        # A server that goes away while this process starts is an outage; whoever keeps it alive starts it again.
        typed = error if isinstance(error, MusterError) else connection_error(error)
        logger.error("%s", typed, extra={"action": "worker.failed", "code": typed.code})
        return typed.exit_code


if __name__ == "__main__":
    sys.exit(main())
