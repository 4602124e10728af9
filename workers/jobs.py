"""Jobs: long work on stock Dramatiq queues, in a database of their own, by the same processes that follow the feed.

A message carries a task's id and nothing else; all that is known of the task is in the store (workers/tasks.py). So a
message may be lost, delivered twice, or delivered to somebody while another still works: what is lost is sent again by
the schedule, and who is not the only one stops. A job that is stopped, or whose process dies, is gone on with at the
partition it was in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Event, Thread
from typing import Any, Final

import dramatiq
import redis
from dramatiq import Worker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries
from msgspec import structs

from domain.errors import Conflict, Misconfigured, MusterError, Unavailable
from domain.log import SessionLog, connect
from domain.telemetry import FINDINGS, JOBS_ENDED, REPAIRED
from projections.drift import Validator
from projections.findings import REPAIR, Finding
from projections.lease import RECOVERY_PREFIX
from projections.own.drift import OwnValidator
from projections.own.store import DONE as BUILT
from projections.own.store import OwnStore
from projections.projection import Definition
from projections.scrub import Scrub
from projections.store import ProjectionStore
from workers.migration.job import migrate
from workers.recovery import Recovery, plan_of, rebuild_own
from workers.settings import JobSettings, Settings
from workers.tasks import CANCELLED, DONE, ENDED, FAILED, LEASE_TTL_MS, Task, Tasks
from workers.telemetry.counting import count

logger = logging.getLogger(__name__)

QUEUE: Final = "jobs"
ACTOR: Final = "run_task"
#: After how long without a sign of life Dramatiq gives a process's messages to others, in ms.
HEARTBEAT_TIMEOUT_MS: Final = 5_000
#: How many of a million commands look for such messages.
MAINTENANCE_CHANCE: Final = 200_000
#: How long a poll of an empty queue backs off at most, in ms.
POLL_MS: Final = 500
#: How many findings a verification keeps in its result; it counts them all.
FINDINGS_KEPT: Final = 100


class Bench:
    """What jobs work with: the store, the log, the own projections this process knows."""

    def __init__(self, log: SessionLog, definitions: Sequence[Definition], settings: Settings) -> None:
        self.settings = settings
        self.log = log
        self.store = ProjectionStore(log.client, log.keyspace)
        self.definitions = definitions

    def recovery(self, task: Task) -> Recovery:
        return Recovery(self.store, self.log, who=holder(task), progress=partial(_progress, task))


def verify(bench: Bench, task: Task, partition: int) -> dict[str, Any]:
    """Reads a partition again and compares: findings by code, and the first of them in full."""
    validator = Validator(bench.store, bench.log)
    found = [finding for finding in validator.partition(partition) if finding.severity != "info"]
    found += own_findings(bench, partition)
    return _told(found) | {"sessions": validator.read.sessions, "events": validator.read.events}


def scrub(bench: Bench, task: Task, partition: int) -> dict[str, Any]:
    """Verifies of a partition what is due, with its part of what is left of the round's budget; repairs what it may.

    Own projections are verified when a sweep of the partition is done.
    """
    spent = task.result.get("sessions", 0) + task.result.get("events", 0)
    scrubbing = Scrub(bench.store, bench.log, partition)
    found = list(scrubbing.round(max(1, (task.options["budget"] - spent) // len(task.left))))
    kinds = task.options.get("auto_repair", [])
    if mendable := auto_repairable(found, kinds):
        recovery = bench.recovery(task)
        recovery.carry_out(plan_of(bench.log.identity.store, mendable), quarantine=False)
    if scrubbing.done.sweeps:
        found += own_findings(bench, partition)
    read = structs.asdict(scrubbing.done) | {"sessions": scrubbing.read.sessions, "events": scrubbing.read.events}
    return _told(found) | read | {"repaired": len(mendable)}


def auto_repairable(found: Sequence[Finding], kinds: Sequence[str]) -> list[Finding]:
    """What may be repaired without being asked: findings that recovery mends, of these kinds, about sessions of which
    nothing else was found.
    """
    held = {one.session for one in found if one.kind not in kinds or one.remedy != REPAIR}
    return [
        one
        for one in found
        if one.kind in kinds and one.remedy == REPAIR and (one.session is None or one.session not in held)
    ]


def own_findings(bench: Bench, partition: int) -> list[Finding]:
    """What is found in a partition of the own projections that this process knows and that are built."""
    found: list[Finding] = []
    for definition in bench.definitions:
        store = OwnStore(bench.log.client, bench.log.keyspace, definition)
        if store.builds([partition]) == [BUILT]:
            found += OwnValidator(store, bench.log).partition(partition)
    return found


def recover(bench: Bench, task: Task, partition: int) -> dict[str, Any]:
    """Verifies a partition, repairs what is found, verifies again: what is left is told in full."""
    found = list(Validator(bench.store, bench.log).partition(partition))
    recovery = bench.recovery(task)
    left = recovery.apply(plan_of(bench.log.identity.store, found)) if found else []
    return _told(left) | {
        "found": len(found),
        "repaired": len(found) - len(left),
        "quarantined": recovery.repaired.quarantined,
    }


def rebuild(bench: Bench, task: Task, partition: int) -> dict[str, Any]:
    """Builds a partition again from the log: of the built-in views, or of the own projection that the task names."""
    label = task.options.get("projection")
    if label is None:
        done = bench.recovery(task).rebuild([partition])
        return {"sessions": done.sessions, "changed": done.changed, "quarantined": done.quarantined}
    definition = next((one for one in bench.definitions if one.label == label), None)
    if definition is None:
        raise Misconfigured("PROJECTION_ABSENT", f"the class of {label} is not known to the worker")
    store = OwnStore(bench.log.client, bench.log.keyspace, definition)
    return {
        "partitions": rebuild_own(store, bench.log, [partition], who=holder(task), progress=partial(_progress, task))
    }


def _progress(task: Task, line: str) -> None:
    logger.info("%s", line, extra={"action": "jobs.progress", "task": task.id, "kind": task.kind})


def holder(task: Task) -> str:
    """The name partitions are held by: the task's and not the process's, so that who goes on with it need not wait."""
    return f"{RECOVERY_PREFIX}task:{task.id}"


KINDS: Final[Mapping[str, Callable[[Bench, Task, int], dict[str, Any]]]] = {
    "verify": verify,
    "scrub": scrub,
    "recover": recover,
    "rebuild": rebuild,
    "migrate": lambda bench, task, partition: migrate(bench.log, bench.settings, task, partition),
}
#: Those that are asked for by a name alone; a migration is asked for by `muster migrate`.
ASKED: Final = frozenset(KINDS) - {"migrate"}


class JobQueue:
    """The queue of a store's jobs: asks for tasks, and sends messages for them."""

    def __init__(self, settings: Settings, log: SessionLog) -> None:
        if settings.jobs.url is None:
            raise Misconfigured("JOBS_OFF", "no database for jobs is named")
        self._jobs = settings.jobs
        self.tasks = Tasks(log.client, log.keyspace)
        self._keyspace = log.keyspace
        self.client: Any = connect(structs.replace(settings.redis, url=settings.jobs.url, username=None, password=None))
        self.broker = RedisBroker(  # type: ignore[no-untyped-call]
            client=self.client,
            namespace=f"muster-jobs:{settings.environment}:{settings.namespace}",
            heartbeat_timeout=HEARTBEAT_TIMEOUT_MS,
            maintenance_chance=MAINTENANCE_CHANCE,
            middleware=[Retries(max_retries=0)],
        )
        self.broker.declare_queue(QUEUE)

    def take(self, jobs: JobSettings) -> None:
        """What rounds of scrubbing read and repair, from the next one on."""
        self._jobs = jobs

    def ask(self, kind: str, who: str, *, partitions: list[int] | None = None, **options: Any) -> Task:
        """Asks for a job; returns its task, which is written down before anything is sent.

        Raises Refused (USAGE) for partitions the store has not.
        """
        task = self.tasks.create(kind, self._keyspace.chosen(partitions), options, who)
        self.send(task.id)
        return task

    def ask_scrub(self, who: str) -> Task | None:
        """Asks for a round of scrubbing, within the budget that is set; None if one has not ended yet."""
        if any(task.kind == "scrub" for task in self.tasks.open()):
            return None
        return self.ask("scrub", who, budget=self._jobs.verify_events, auto_repair=self._jobs.repaired_kinds)

    def send(self, id: str) -> None:
        """Sends a message for a task. It may be lost, or be one too many."""
        self.tasks.sent(id)
        self.broker.enqueue(dramatiq.Message(QUEUE, ACTOR, (id,), {}, {}))

    def close(self) -> None:
        self.client.close()


class JobRunner:
    """Runs the jobs that are sent to this process, `threads` at a time."""

    def __init__(self, settings: Settings, log: SessionLog, definitions: Sequence[Definition], worker_id: str) -> None:
        self.queue = JobQueue(settings, log)
        self._tasks = self.queue.tasks
        self._bench = Bench(log, definitions, settings)
        self._worker_id = worker_id
        self._stopping = Event()
        dramatiq.actor(
            broker=self.queue.broker,
            queue_name=QUEUE,
            actor_name=ACTOR,
            max_retries=0,
            throws=(redis.RedisError, OSError),
        )(self.run_task)
        self._worker = Worker(
            self.queue.broker, queues={QUEUE}, worker_threads=settings.jobs.threads, worker_timeout=POLL_MS
        )

    def start(self) -> None:
        self._worker.start()

    def stop_soon(self) -> None:
        """Has running jobs stop after the partition they are in."""
        self._stopping.set()

    def stop(self, timeout_ms: int) -> None:
        """Waits for them; what was fetched and not begun goes back to the queue."""
        self.stop_soon()
        self._worker.stop(timeout=timeout_ms)
        self.queue.close()

    def run_task(self, id: str) -> None:
        """Goes on with a task until it ends, or this process is told to stop, or another one has it."""
        try:
            task = self._tasks.get(id)
        except MusterError as gone:
            logger.warning("a job for nothing: %s", gone.cause, extra={"action": "jobs.gone", "task": id})
            return
        token = self._tasks.claim(id, f"{self._worker_id}:{id}") if task.state not in ENDED else None
        if token is None:
            return
        done = Event()
        keeper = Thread(target=self._keep, args=(id, token, done), name=f"task-{id}", daemon=True)
        keeper.start()
        try:
            self._go_on(self._tasks.get(id), token)
        except Conflict as conflict:
            logger.warning("%s", conflict.cause, extra={"action": "jobs.conflict", "task": id})
        except (Unavailable, redis.RedisError, OSError) as away:
            about = {"action": "jobs.waits", "task": id}  # the schedule sends it again
            logger.warning("task %s waits for the server: %s", id, away, extra=about)
        finally:
            done.set()
            keeper.join()

    def _go_on(self, task: Task, token: str) -> None:
        while task.state not in ENDED and task.left:
            if self._stopping.is_set():
                self._tasks.release(task.id, token)
                self.queue.send(task.id)
                return
            at = task.left[0]
            about = {"action": "jobs.partition", "task": task.id, "kind": task.kind, "partition": at}
            logger.debug("task %s (%s) goes through partition %d", task.id, task.kind, at, extra=about)
            try:
                made = KINDS[task.kind](self._bench, task, task.left[0])
            except (Conflict, Unavailable, redis.RedisError, OSError):
                raise
            except Exception as error:
                about = {"action": "jobs.failed", "task": task.id, "kind": task.kind}
                logger.exception("task %s failed", task.id, extra=about)
                self._end(task, token, FAILED, str(error)[:500])
                return
            for code, number in made.get("codes", {}).items():
                count(FINDINGS, number, code=code)
            count(REPAIRED, made.get("repaired", 0))
            self._tasks.progress(task, token, added(task.result, made))
            task = self._tasks.get(task.id)
        if task.state != CANCELLED:
            self._end(task, token, DONE)
        if codes := task.result.get("codes"):
            told = ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
            about = {"action": "jobs.found", "task": task.id, "kind": task.kind}
            logger.warning(
                "task %s (%s) found %s: muster job show %s", *(task.id, task.kind, told, task.id), extra=about
            )
        self._tasks.release(task.id, token)

    def _end(self, task: Task, token: str, state: str, error: str | None = None) -> None:
        self._tasks.end(task, token, state, error)
        count(JOBS_ENDED, kind=task.kind, state=state)

    def _keep(self, id: str, token: str, done: Event) -> None:
        while not done.wait(LEASE_TTL_MS / 4000):
            try:
                if not self._tasks.renew(id, token):
                    return
            except (redis.RedisError, OSError) as error:
                about = {"action": "jobs.lease_unrenewed", "task": id}
                logger.warning("the lease of task %s could not be renewed: %s", id, error, extra=about)


def added(result: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The result of some partitions and of one more: numbers are added, lists joined up to what is kept."""
    joined = dict(result)
    for name, value in more.items():
        if name not in joined:
            joined[name] = value
        elif isinstance(value, dict):
            joined[name] = added(joined[name], value)
        else:
            joined[name] = joined[name] + value
    if isinstance(kept := joined.get("findings"), list):
        joined["findings"] = kept[:FINDINGS_KEPT]
    return joined


def _told(found: list[Finding]) -> dict[str, Any]:
    codes: dict[str, int] = {}
    for finding in found:
        codes[finding.code] = codes.get(finding.code, 0) + 1
    return {"codes": codes, "findings": [structs.asdict(finding) for finding in found[:FINDINGS_KEPT]]}
