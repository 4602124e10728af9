"""`muster parked`: sessions that wait at a commit that breaks a law; trying them again, or discarding that commit."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from domain.errors import NotFound, Refused
from domain.events import check_session
from domain.log import SessionLog
from projections.own.publishing import Publications
from projections.store import Parked, ProjectionStore
from workers.cli import arguments, printing
from workers.cli.own_projections import store_of
from workers.recovery import Recovery, check_discardable
from workers.settings import Settings

SCHEMA: Final = "muster.parked/1"
COLUMNS: Final = ("session", "partition", "code", "fingerprint", "first_bad_seq", "attempts", "cause")
GROUP_COLUMNS: Final = ("fingerprint", "code", "sessions", "example", "cause")
#: The longest reason that may be given for discarding a commit, in characters.
LONGEST_WHY: Final = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)

    ls = arguments.command(group, "ls", "list parked sessions, in no order", run_ls)
    ls.add_argument("--fingerprint", metavar="F", help="only those with this trouble")
    ls.add_argument("--code", metavar="C", help="only those with this error code")
    ls.add_argument("--partition", type=int, metavar="N", help="only those of this partition")
    ls.add_argument("--by-fingerprint", action="store_true", help="one row a trouble, the most frequent first")

    show = arguments.command(group, "show", "show why one session is parked", run_show)
    show.add_argument("session")
    for command in (ls, show):
        command.add_argument("--projection", metavar="NAME[@V]", help="by an own projection, not the built-in one")

    retry = arguments.command(group, "retry", "build parked sessions again from the log", run_retry)
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("session", nargs="*", default=[], help="these sessions")
    which.add_argument("--fingerprint", metavar="F", help="all with this trouble")
    which.add_argument("--code", metavar="C", help="all with this error code")
    which.add_argument("--all", action="store_true", help="all of them")
    retry.add_argument("--projection", metavar="NAME[@V]", help="those of an own projection: its workers try again")
    retry.add_argument("--dry-run", action="store_true", help="say how many it would touch")

    discard = arguments.command(
        group, "discard", "pass over the bad commit that sessions are parked at, for ever", run_discard
    )
    which = discard.add_mutually_exclusive_group(required=True)
    which.add_argument("session", nargs="*", default=[], help="of these sessions")
    which.add_argument("--fingerprint", metavar="F", help="of all with this trouble")
    which.add_argument("--code", metavar="C", help="of all with this error code")
    discard.add_argument("--why", required=True, metavar="TEXT", help="the reason, which is kept with the log")
    discard.add_argument("--dry-run", action="store_true", help="say how many it would touch")


def run_ls(options: argparse.Namespace, settings: Settings) -> int:
    with opened(options, settings) as (_, store):
        partitions = store.keyspace.chosen(None if options.partition is None else [options.partition])
        found = parked(store, partitions, options.fingerprint, options.code)
        if options.by_fingerprint:
            printing.rows(grouped(found), options.output, columns=GROUP_COLUMNS)
        else:
            printing.rows((row(*one) for one in found), options.output, columns=COLUMNS)
    return 0


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with opened(options, settings) as (_, store):
        printing.document(row(*named(store, options.session)), options.output)
    return 0


def run_retry(options: argparse.Namespace, settings: Settings) -> int:
    with opened(options, settings) as (log, store):
        chosen = by_partition(meant(store, options))
        if options.dry_run:
            count = sum(map(len, chosen.values()))
            printing.say(f"dry run: would try {count} parked sessions again in {len(chosen)} partitions")
            return 0
        if options.projection:
            publications = Publications(log.client, log.keyspace)
            publications.retry(publications.version(store.name, store.version), chosen, arguments.who())
            printing.say(f"the workers of {store.owned} go through {len(chosen)} partitions again")
            return 0
        recovery = Recovery(store, log, who=f"recovery:{arguments.who()}", progress=printing.Progress())
        retried = recovery.retry(chosen)
    printing.document({"schema": "muster.parked-retry/1", **msgspec.to_builtins(retried)}, options.output)
    return 7 if retried.still_parked else 0


def run_discard(options: argparse.Namespace, settings: Settings) -> int:
    why = checked_why(options.why)
    with arguments.opened(settings) as (log, store):
        found = list(meant(store, options))
        for _, session, reason in found:
            check_discardable(session, reason)
        chosen = by_partition(found)
        if options.dry_run:
            count = sum(map(len, chosen.values()))
            printing.say(f"dry run: would discard a commit of {count} parked sessions in {len(chosen)} partitions")
            return 0
        recovery = Recovery(store, log, who=f"recovery:{arguments.who()}", progress=printing.Progress())
        discarded = recovery.discard(chosen, why=why)
        retry_own(log, chosen)
    printing.document({"schema": "muster.parked-discard/1", **msgspec.to_builtins(discarded)}, options.output)
    return 7 if discarded.still_parked else 0


@contextmanager
def opened(options: argparse.Namespace, settings: Settings) -> Iterator[tuple[SessionLog, ProjectionStore]]:
    """The log, and the store of the projection that is meant."""
    with arguments.opened(settings) as (log, store):
        yield log, store_of(log, options.projection) if options.projection else store


def retry_own(log: SessionLog, chosen: Mapping[int, Collection[str]]) -> None:
    """Has the workers of own projections try these sessions again, where they parked them too."""
    publications = Publications(log.client, log.keyspace)
    for version in publications.versions():
        store = store_of(log, version.label)
        waiting = [at for at, sessions in chosen.items() if any(store.parked(at, sorted(sessions)))]
        if waiting:
            publications.retry(version, waiting, arguments.who())


def checked_why(text: str) -> str:
    """The reason for a discard, which truth keeps for ever. Raises Refused (USAGE)."""
    why = text.strip()
    if not 0 < len(why) <= LONGEST_WHY or not why.isprintable():
        raise Refused("USAGE", f"--why takes one line of 1 to {LONGEST_WHY} characters that says the reason")
    return why


def meant(store: ProjectionStore, options: argparse.Namespace) -> Iterable[tuple[int, str, Parked]]:
    """The parked sessions that a command names, or filters.

    All names are checked before the first session is touched, so a slip of the pen leaves nothing half done.
    """
    if options.session:
        return [named(store, session) for session in options.session]
    return parked(store, range(store.keyspace.count), options.fingerprint, options.code)


def by_partition(found: Iterable[tuple[int, str, Parked]]) -> dict[int, set[str]]:
    """Sessions by their partition."""
    chosen: dict[int, set[str]] = {}
    for partition, session, _ in found:
        chosen.setdefault(partition, set()).add(session)
    return chosen


def parked(
    store: ProjectionStore, partitions: Iterable[int], fingerprint: str | None, code: str | None
) -> Iterator[tuple[int, str, Parked]]:
    """The parked sessions of partitions, with this fingerprint and this code where one is given."""
    for partition in partitions:
        for page in store.parked_pages(partition):
            for session, reason in page.items():
                if fingerprint in (None, reason.fingerprint) and code in (None, reason.code):
                    yield partition, session, reason


def named(store: ProjectionStore, session: str) -> tuple[int, str, Parked]:
    """One parked session. Raises NotFound (NOT_PARKED)."""
    check_session(session)
    partition = store.keyspace.partition_of(session)
    (reason,) = store.parked(partition, [session])
    if reason is None:
        raise NotFound("NOT_PARKED", f"session {session} is not parked", session=session)
    return partition, session, reason


def row(partition: int, session: str, reason: Parked) -> dict[str, Any]:
    values = {"session": session, "partition": partition, **msgspec.to_builtins(reason)}
    return {"schema": SCHEMA, **{name: values[name] for name in COLUMNS}}


def grouped(found: Iterable[tuple[int, str, Parked]]) -> list[dict[str, Any]]:
    """One row a fingerprint, the most frequent first, with the session that comes first by id as the example."""
    groups: dict[str, dict[str, Any]] = {}
    for _, session, reason in found:
        group = groups.setdefault(
            reason.fingerprint,
            {
                "schema": "muster.parked-group/1",
                "fingerprint": reason.fingerprint,
                "code": reason.code,
                "sessions": 0,
                "example": session,
                "cause": reason.cause,
            },
        )
        group["sessions"] += 1
        if session < group["example"]:
            group |= {"example": session, "cause": reason.cause}
    return sorted(groups.values(), key=lambda group: (-group["sessions"], group["fingerprint"]))
