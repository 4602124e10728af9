"""How long a command takes that has little to do, and a worker until it holds its partitions; against Python itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.bench.arena import Arena, wait_until
from tests.bench.row import Contestant, Kind, Measure, Ratio, Row
from workers.fleet import worker_supervisor
from workers.leasing import living_workers
from workers.settings import RedisSettings, Settings

MUSTER = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]


def command(name: str, line: list[str], kind: Kind = Kind.MUSTER) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        environment = os.environ | {"MUSTER_REDIS__URL": arena.store()}

        def measure() -> float:
            began = time.perf_counter()
            subprocess.run(line, env=environment, stdout=subprocess.DEVNULL, check=True)
            return time.perf_counter() - began

        return measure

    return Contestant(name, prepare, kind)


def worker(arena: Arena) -> Measure:
    log = arena.log()
    settings = Settings(redis=RedisSettings(arena.store()))

    def is_at_work() -> bool:
        return [len(each["partitions"]) for each in living_workers(log.client, log.keyspace)] == [32]

    def measure() -> float:
        began = time.perf_counter()
        with worker_supervisor(settings, count=1, log=arena.say):
            wait_until(is_at_work)
            return time.perf_counter() - began

    return measure


PYTHON = command("python -c pass", [sys.executable, "-c", "pass"], Kind.LIMIT)
COMMANDS = [
    command("muster explain", [*MUSTER, "explain", "TAIL_LOST"]),
    command("muster session ls", [*MUSTER, "session", "ls"]),
    Contestant("a worker holds all partitions", worker),
]

ROW = Row("start-up", "s", [PYTHON, *COMMANDS], [Ratio(each.name, PYTHON.name) for each in COMMANDS], rounds=3)
