"""A phase of a migration as a job of the target's workers: partition by partition of the source."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final

from msgspec import structs

from domain.errors import Conflict
from domain.log import SessionLog
from domain.log.place import parse_place
from workers.migration import record
from workers.migration.ends import Address, Ends, address, opened
from workers.migration.moving import Done, Moving
from workers.migration.record import Migration, Migrations
from workers.migration.selecting import selected
from workers.pacing import Pace
from workers.settings import Settings
from workers.tasks import Task

logger = logging.getLogger(__name__)

#: What each phase is called while it is under way, and after it.
PHASES: Final = {
    "copy": (record.COPYING, record.COPIED),
    "verify": (record.COPYING, record.COPIED),
    "cutover": (record.CUTTING, record.MOVED),
}


def migrate(log: SessionLog, settings: Settings, task: Task, partition: int) -> dict[str, Any]:
    """The part of a phase that is about one partition of the source.

    Raises Conflict (MIGRATION_BUSY), Unavailable: then the task is gone on with later.
    """
    id, phase = task.options["migration"], task.options["phase"]
    keyspace, target = log.keyspace, address("to", settings, url=settings.redis.url)
    here = structs.replace(target, environment=keyspace.environment, namespace=keyspace.namespace)
    with opened(_source(log, settings, id), here) as ends:
        migration = Migrations(ends.target.store).get(id)
        if migration.state in record.ENDED:
            raise Conflict("MIGRATION_OVER", f"migration {id} is {migration.state}")
        pace = Pace(logger.debug, verb=phase, per_s=task.options.get("rate"))
        work = Moving(ends, migration, who=f"job:{task.id}", pace=pace, say=logger.info)
        begins, ends_as = PHASES[phase]
        if phase == "verify":
            begins = ends_as = migration.state
        with work.phase(begins, ends_as if partition == task.partitions[-1] else None):
            return _told(_done(work, phase, _sessions(ends, migration, partition)))


def _source(log: SessionLog, settings: Settings, id: str) -> Address:
    """Where the record says sessions come from, with the user that the settings name."""
    stored = Migrations.source_of(log, id)
    place = parse_place(stored)
    assert place is not None
    url = settings.migrate.from_url or place.url
    return address("from", settings, url=url, environment=place.environment, namespace=place.namespace)


def _sessions(ends: Ends, migration: Migration, partition: int) -> Iterator[str]:
    begun = set[str]()
    if migration.selection:
        moves = Migrations(ends.target.store).moves(migration.id)
        begun = {session for session, _ in moves if ends.source.keyspace.partition_of(session) == partition}
        yield from sorted(begun)
    yield from (one for one in selected(ends.source, migration.selection, partition) if one not in begun)


def _done(work: Moving, phase: str, sessions: Iterator[str]) -> Done:
    if phase == "copy":
        return work.copy(sessions)
    if phase == "cutover":
        return work.cutover(sessions)
    compared = work.verify(sessions)
    for problem in compared.problems:
        about = {"action": "jobs.moved_differs", "code": problem.code, "seq": problem.seq}
        logger.error("%s at seq %d: %s", problem.code, problem.seq, problem.cause, extra=about)
    return Done(compared.sessions, compared.events, len(compared.problems))


def _told(done: Done) -> dict[str, Any]:
    return {"sessions": done.sessions, "events": done.events, "failed": done.failed}
