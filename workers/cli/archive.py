"""`muster archive`: what left the server's memory, and may."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec
from msgspec import Struct

from domain.log import SessionLog
from domain.log.archive.place import Archive
from projections.store import ProjectionStore, readable_head
from workers.archiving.archivist import Archived, Archivist
from workers.archiving.checking import Check
from workers.archiving.choosing import TIGHT, Keeping, candidates
from workers.cli import arguments, printing
from workers.fleet import until_stopped
from workers.memory import used_share
from workers.pacing import Pace, Stopped
from workers.settings import Settings
from workers.stopping import Stop

FINDING_COLUMNS = ("code", "severity", "session", "first_bad_seq", "stored")


class Standing(Struct):
    """How much of a store is where."""

    sessions: int = 0
    #: All of it is in the archive.
    cold: int = 0
    #: The beginning of it is.
    begun: int = 0
    events: int = 0
    events_archived: int = 0


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    arguments.command(group, "status", "how much is in the archive, how full the server's memory is", run_status)
    run = arguments.command(group, "run", "archive now what may go; workers do by themselves", run_run)
    run.add_argument(
        "--all", action="store_true", help="as if memory were short: all that ended, all before checkpoints"
    )
    run.add_argument("--rate", type=float, metavar="N", help="at most so many events a second")
    run.add_argument("--dry-run", action="store_true", help="say how much it would touch")
    arguments.command(group, "verify", "read all that is archived, and look for what should not be there", run_verify)


def run_status(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        stands = standing(store)
        info = log.client.info("memory")
        told = {
            "schema": "muster.archive/1",
            "archive": archive_of(log, settings).described(),
            **msgspec.to_builtins(stands),
            "memory": round(used_share(info), 4) if info["maxmemory"] else None,
        }
    printing.document(told, options.output)
    return 0


def run_run(options: argparse.Namespace, settings: Settings) -> int:
    keeping = TIGHT if options.all else Keeping(settings.archive.hot_events, settings.archive.after_end_s)
    stop = Stop()
    with arguments.opened(settings) as (log, store), until_stopped(stop):
        archive = archive_of(log, settings)
        if options.dry_run:
            due = [one for partition in range(log.keyspace.count) for one in candidates(store, partition, keeping)]
            events = sum(one.up_to - one.from_seq for one in due)
            printing.say(
                f"dry run: would archive up to {events} events of {len(due)} sessions in {archive.described()}"
            )
            return 0
        pace = Pace(printing.Progress(), verb="archived", per_s=options.rate, stop=stop)
        archivist = Archivist(log, store, archive, goes_on=pace.took)
        is_whole = True
        try:
            for partition in range(log.keyspace.count):
                archivist.partition(partition, keeping)
        except Stopped:
            is_whole = False
    printing.document(told(archivist.done), options.output)
    return 7 if archivist.done.left or not is_whole else 0


def run_verify(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        pace = Pace(printing.Progress(), verb="read")
        check = Check(log, store, archive_of(log, settings), goes_on=pace.took)
        found = (msgspec.to_builtins(one) for one in check.findings())
        count = printing.rows(found, options.output, columns=FINDING_COLUMNS)
    read = check.read
    printing.say(
        f"{read.segments} segments of {read.sessions} sessions, {read.events} events, {read.bytes} bytes read; "
        f"{read.unnamed} more in the archive; {count} findings"
    )
    return 8 if count else 0


def archive_of(log: SessionLog, settings: Settings) -> Archive:
    """The archive that the settings name. Raises Misconfigured (ARCHIVE_NOT_GIVEN)."""
    if settings.archive.url is None:
        log.archive.get("what is archived")
    return log.archive


def standing(store: ProjectionStore) -> Standing:
    """How much of a store is where, by heads and horizons."""
    stands = Standing()
    for partition in range(store.keyspace.count):
        keys = store.keys(partition)
        for page in store.member_pages(partition):
            heads = [readable_head(one) for one in store.client.mget([keys.head(session) for session in page])]
            archived = [session for session, head in zip(page, heads, strict=True) if head and head.is_archived]
            stands.sessions += len(page)
            stands.events += sum(head.seq for head in heads if head)
            stands.cold += sum(head.is_cold for head in heads if head)
            stands.begun += sum(head.is_archived and not head.is_cold for head in heads if head)
            stands.events_archived += sum(horizon.seq for horizon in store.horizons(archived) if horizon)
    return stands


def told(done: Archived) -> dict[str, Any]:
    return {"schema": "muster.archived/1", **msgspec.to_builtins(done)}
