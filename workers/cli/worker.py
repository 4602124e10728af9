"""`muster worker`: runs worker processes, and lists those that live."""

from __future__ import annotations

import argparse
import os
import signal
from contextlib import suppress
from typing import Any

from projections.session_view import rfc3339
from workers.cli import arguments, printing
from workers.fleet import until_stopped, worker_supervisor
from workers.halting import Halting
from workers.leasing import living_workers
from workers.readiness import refuse_unless_ready
from workers.reloading import InForce, Reloading, name_of_process
from workers.settings import Reading
from workers.stopping import Stop
from workers.supervisor import Supervisor
from workers.watching import Watch

COLUMNS = ("pid", "host", "partitions", "heartbeat_at")


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    run = arguments.command(group, "run", "run worker processes in the foreground until SIGTERM or SIGINT", run_run)
    arguments.profile(run)
    run.add_argument("--processes", type=int, help="how many (MUSTER_WORKER__PROCESSES)")
    arguments.command(group, "ls", "list the living processes that hold partitions", run_ls)


def run_run(options: argparse.Namespace, reading: Reading) -> int:
    from workers import logs  # here, since `worker ls` says nothing that would have to be rendered

    stop, in_force = Stop(), InForce(reading.loaded().valid())
    settings = in_force.settings
    say = logs.saying(settings)
    # Opened before anything is started: a server that cannot be used is an error now, not a restart every few seconds.
    with logs.logging_as(settings), arguments.opened(settings) as (_, store), until_stopped(stop) as killed:
        refuse_unless_ready(settings)  # after it was opened: a server that is about to start is waited for
        supervisor = worker_supervisor(settings, count=options.processes, log=say)
        in_force.tell(supervisor.take)
        watch = Watch(store, say, goes_on=supervisor.release)
        supervisor.start()
        signal.signal(signal.SIGUSR1, lambda *_: pass_on(signal.SIGUSR1, supervisor))
        say(f"workers run: {', '.join(map(str, supervisor.pids.values()))}")
        killed(supervisor.kill)
        watch.start()
        with Reloading(reading, in_force, who=name_of_process("worker run"), say=say).running():
            stop.wait()
        say("draining")
        clean = supervisor.stop(in_force.settings.worker.drain_s + 5)
        watch.stop()
    return 0 if clean else 10


def pass_on(number: signal.Signals, supervisor: Supervisor) -> None:
    """Sends a signal to every worker process that runs."""
    for pid in supervisor.pids.values():
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def run_ls(options: argparse.Namespace, reading: Reading) -> int:
    with arguments.opened_log(reading.loaded().valid()) as log:
        printing.rows(map(_row, living_workers(log.client, log.keyspace)), options.output, columns=COLUMNS)
        if (halt := Halting(log.client, log.keyspace).standing()) is not None:
            printing.say(halt.told)
    return 0


def _row(worker: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": "muster.worker/1",
        "worker": worker["worker"],
        "pid": int(worker["pid"]),
        "host": worker["host"],
        "partitions": worker["partitions"],
        "heartbeat_at": rfc3339(int(worker["heartbeat_at"])),
        "idle_s": worker.get("idle_s"),
        "grace_s": worker.get("grace_s"),
    }
