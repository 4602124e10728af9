"""`muster job`: asks for long work, which the worker processes do, and says how far it is."""

from __future__ import annotations

import argparse
import time
from typing import Any, Final

from domain.errors import DeadlineExceeded
from projections.session_view import rfc3339
from workers.cli import arguments, printing
from workers.cli.own_projections import store_of
from workers.jobs import ASKED, JobQueue
from workers.settings import Settings
from workers.tasks import DONE, ENDED, FAILED, Task, Tasks

COLUMNS: Final = ("task", "kind", "state", "done", "of", "holder", "who", "created_at")
#: How often `job wait` looks, in seconds.
LOOK_EVERY_S: Final = 0.2


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)

    run = arguments.command(group, "run", "ask for a job; workers that know MUSTER_JOBS__URL do it", run_run)
    run.add_argument(
        "kind",
        choices=sorted(ASKED),
        help="verify: compare all; scrub: what is due of it; recover: repair; rebuild: build again",
    )
    run.add_argument("--partition", type=int, action="append", metavar="N", help="only this one; may be repeated")
    run.add_argument("--projection", metavar="NAME[@V]", help="with rebuild: this own projection")
    run.add_argument("--dry-run", action="store_true", help="say how much it would touch")
    run.add_argument("--wait", action="store_true", help="return when it has ended")
    run.add_argument("--timeout", type=float, metavar="S", help="with --wait: give up after so many seconds (exit 10)")

    ls = arguments.command(group, "ls", "list jobs, the newest first", run_ls)
    ls.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many (default 20)")

    for name, purpose, action in (
        ("show", "show one job: how far it is, what came of it", run_show),
        ("cancel", "have nobody go on with a job", run_cancel),
    ):
        arguments.command(group, name, purpose, action).add_argument("task")

    wait = arguments.command(group, "wait", "return when a job has ended", run_wait)
    wait.add_argument("task")
    wait.add_argument("--timeout", type=float, metavar="S", help="give up after so many seconds (exit 10)")


def run_run(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        asked: dict[str, Any] = {}
        if options.projection is not None:
            asked["projection"] = store_of(log, options.projection).label
        if options.dry_run:
            count = len(options.partition or range(log.keyspace.count))
            printing.say(f"dry run: would {options.kind} {count} partitions")
            return 0
        queue = JobQueue(settings, log)
        try:
            if options.kind == "scrub":
                asked["budget"] = settings.jobs.verify_events
            task = queue.ask(options.kind, arguments.who(), partitions=options.partition, **asked)
        finally:
            queue.close()
        if options.wait:
            task = awaited(queue.tasks, task.id, options.timeout)
    return shown(task, options.output)


def run_ls(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        tasks = Tasks(log.client, log.keyspace).newest(options.limit)
        printing.rows(map(row, tasks), options.output, columns=COLUMNS)
    return 0


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        return shown(Tasks(log.client, log.keyspace).get(options.task), options.output)


def run_cancel(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        shown(Tasks(log.client, log.keyspace).cancel(options.task), options.output)
    return 0


def run_wait(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        return shown(awaited(Tasks(log.client, log.keyspace), options.task, options.timeout), options.output)


def awaited(tasks: Tasks, id: str, timeout_s: float | None) -> Task:
    """The task once it has ended. Raises DeadlineExceeded (BEHIND)."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    progress = printing.Progress()
    while (task := tasks.get(id)).state not in ENDED:
        if deadline is not None and time.monotonic() > deadline:
            at = f"{task.position} of {len(task.partitions)} partitions"
            raise DeadlineExceeded("BEHIND", f"after {timeout_s:g} s task {id} is {task.state}, at {at}")
        progress(f"task {id}: {task.state}, {task.position} of {len(task.partitions)} partitions")
        time.sleep(LOOK_EVERY_S)
    return task


def shown(task: Task, output: str) -> int:
    """Prints a task; returns what came of it as an exit code: 0, 1 if it failed or found something, 7 if something is
    left that could not be repaired.
    """
    printing.document(row(task), output)
    if task.state == FAILED:
        return 1
    if task.state == DONE and (task.result.get("codes") or task.result.get("quarantined")):
        return 1 if task.kind in ("verify", "scrub") else 7
    return 0


def row(task: Task) -> dict[str, Any]:
    return {
        "schema": "muster.task/1",
        "task": task.id,
        "kind": task.kind,
        "state": task.state,
        "done": task.position,
        "of": len(task.partitions),
        "options": task.options,
        "result": task.result,
        "error": task.error,
        "holder": task.holder,
        "deaths": task.deaths,
        "who": task.who,
        "created_at": rfc3339(task.created),
        "started_at": rfc3339(task.started),
        "ended_at": rfc3339(task.ended),
    }
