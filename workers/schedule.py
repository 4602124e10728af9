"""The schedule: what recurs, in any number of processes, and happens once a tick.

APScheduler says when; a tick is a whole number of intervals of the server's clock, and whoever sets its lock first does
what is due. What is missed while nobody runs is not made up for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import redis
from apscheduler.schedulers.background import BackgroundScheduler

from domain.errors import MusterError
from domain.log.keys import Keyspace
from workers.jobs import JobQueue

logger = logging.getLogger(__name__)

#: What recurs.
SWEEP: Final = "sweep"
SCRUB: Final = "scrub"
#: How often tasks are looked for that nobody works on, in seconds.
SWEEP_EVERY_S: Final = 2.0
#: A message that nobody acted on for so long is sent again, in ms.
SEND_AGAIN_MS: Final = 5_000


class Schedule:
    """Sends forsaken tasks again, forgets old ones, and asks for rounds of scrubbing where that is set."""

    def __init__(self, queue: JobQueue, client: Any, keyspace: Keyspace, *, verify_every_s: float | None) -> None:
        self._queue = queue
        self._client = client
        self._keyspace = keyspace
        self._scheduler = BackgroundScheduler(timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1})
        self._add(SWEEP, SWEEP_EVERY_S, self.sweep)
        self._verify_every_s: float | None = None
        self.verify_every(verify_every_s)

    def verify_every(self, every_s: float | None) -> None:
        """How often a round of scrubbing is asked for, from now on; None: never."""
        if every_s == self._verify_every_s:
            return
        if self._verify_every_s is not None:
            self._scheduler.remove_job(SCRUB)
        self._verify_every_s = every_s
        if every_s is not None:
            self._add(SCRUB, every_s, lambda: self._queue.ask_scrub("schedule"))

    def start(self) -> None:
        self._scheduler.start()

    def stop(self) -> None:
        """Ends the schedule, and waits for what it is doing."""
        self._scheduler.shutdown()

    def sweep(self) -> None:
        """Sends tasks again that no process that lives works on."""
        for task in self._queue.tasks.forsaken(SEND_AGAIN_MS):
            about = {"action": "jobs.sent_again", "task": task.id, "kind": task.kind}
            logger.warning("task %s is sent again, nobody works on it", task.id, extra=about)
            self._queue.send(task.id)
        self._queue.tasks.prune()

    def _add(self, name: str, every_s: float, action: Callable[[], Any]) -> None:
        # Looked at more often than it recurs, so that each tick is met, however the clocks of processes differ.
        # At once, too: who looks whether ticks come in time need not wait for the first.
        begin = datetime.now(UTC)
        self._scheduler.add_job(
            self._once, "interval", seconds=every_s / 2, args=(name, every_s, action), id=name, next_run_time=begin
        )

    def _once(self, name: str, every_s: float, action: Callable[[], Any]) -> None:
        try:
            if self.is_first(name, every_s):
                action()
        except (redis.RedisError, OSError, MusterError) as error:
            about = {"action": "jobs.tick_missed", "due": name}
            logger.warning("what was due (%s) could not be done, the next tick will: %s", name, error, extra=about)

    def is_first(self, name: str, every_s: float) -> bool:
        """Whether this process is the first to ask in this tick."""
        seconds, micros = self._client.time()
        every_ms = max(1, int(every_s * 1000))
        now = int(seconds) * 1000 + int(micros) // 1000
        is_first = self._client.set(self._keyspace.tick(name, now // every_ms), "1", nx=True, px=every_ms * 2)
        if is_first:
            self._client.hset(self._keyspace.ticked, name, now)
        return bool(is_first)


def ticked(client: Any, keyspace: Keyspace) -> dict[str, int]:
    """When what recurs was last begun, in server ms."""
    return {name.decode(): int(at) for name, at in client.hgetall(keyspace.ticked).items()}
