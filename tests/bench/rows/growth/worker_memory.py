"""The most memory that one worker process ever held while it drained a backlog, by the size of the backlog."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from domain import Append
from tests.bench.arena import Arena, store_of, wait_until
from tests.bench.events import event
from tests.bench.fleet import left
from tests.bench.row import Contestant, Measure, Row, flat, point
from workers.fleet import worker_supervisor
from workers.settings import RedisSettings, Settings

BACKLOGS = (1_000, 10_000, 100_000)
SESSIONS = 500


def backlog(size: int) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        rounds, each = count(), arena.whole(size, smoke=1_000) // SESSIONS

        def measure() -> float:
            namespace = f"backlog-{size}-{next(rounds)}"
            log = arena.log(namespace)
            for _ in range(each):
                log.append_many([Append(f"s-{number}", (event(),)) for number in range(SESSIONS)])
            store = store_of(log)
            settings = Settings(namespace=namespace, redis=RedisSettings(arena.server().url))
            with worker_supervisor(settings, count=1, log=arena.say) as supervisor:
                wait_until(lambda: left(store) == 0)
                (pid,) = supervisor.pids.values()
                return peak_mib(pid)

        return measure

    return Contestant(point("worker", size), prepare, x=size)


def peak_mib(pid: int) -> float:
    """The high-water mark of a process's resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no VmHWM")


ROW = Row(
    "a worker's memory by its backlog",
    "MiB",
    [backlog(size) for size in BACKLOGS],
    [flat("worker", BACKLOGS[0], BACKLOGS[-1], at_most=1.25)],
    axis="events in the backlog",
    rounds=2,
    is_quick=False,
)
