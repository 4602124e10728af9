"""`muster migrate`: sessions move to another server while they live, and back."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from redis import RedisError

from domain.errors import Conflict, NotFound, Refused, Unavailable
from domain.log.connection import connection_error
from domain.log.place import parse_place
from workers.cli import arguments, filtering, printing
from workers.cli.job import awaited
from workers.fleet import until_stopped
from workers.jobs import JobQueue
from workers.migration import planning, record
from workers.migration.cutting import BATCH
from workers.migration.ends import Address, End, Ends, address, one_end, opened
from workers.migration.holding import Holding
from workers.migration.moving import Done, Moving
from workers.migration.record import Migration, Migrations
from workers.migration.selecting import selection_of
from workers.migration.syncing import POLICIES, Synced, Syncing, lag_of
from workers.migration.telling import counted, is_well, status
from workers.pacing import Pace
from workers.settings import Settings
from workers.stopping import Stop

PROBLEMS_SCHEMA: Final = "muster.migration-verified/1"


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)

    plan = command(group, "plan", "how much there is to move, and what would keep a session from it", run_plan)
    selection(plan)

    copy = command(group, "copy", "copy sessions, or what came since to those that were copied", run_copy)
    selection(copy)
    working(copy)

    verify = command(group, "verify", "compare every commit on both sides; seal again what lost its seal", run_verify)
    working(verify)
    verify.add_argument("--seals", action="store_true", help="only the seals: for every minute until it is retired")

    cutover = command(group, "cutover", "move sessions: seal, copy the rest, compare, open", run_cutover)
    working(cutover)
    cutover.add_argument("--batch", type=positive, default=BATCH, metavar="N", help=f"so many at a time ({BATCH})")

    cutover.add_argument(
        "--proof", metavar="WORD", help="move nothing unless the source proves its seals so: local, aof, replicated(1)"
    )

    rollback = command(group, "rollback", "undo what a migration did, and nothing else", run_rollback)
    chosen(rollback)
    rollback.add_argument("--dry-run", action="store_true", help="say what would be undone")
    rollback.add_argument("--carry-back", action="store_true", help="with what was appended on the target since")

    sync = command(group, "sync", "keep a standby equal, until it is stopped; conflicts are named", run_sync)
    sync.add_argument("--session", action="append", default=[], metavar="ID", help="with --once: only this one; …")
    sync.add_argument("--task", help="this standby's (default: the one from there that is open, or a new one)")
    sync.add_argument("--once", action="store_true", help="one round, then end")
    sync.add_argument("--every", type=above_zero, default=1.0, metavar="S", help="how often the source is asked (1)")
    sync.add_argument(
        "--policy",
        choices=POLICIES,
        default="manual",
        help="what becomes of a session that was written on both sides: nothing (manual); one side's history "
        "counts; or the source's, and the standby's is kept as a fork (keep-both)",
    )
    sync.add_argument("--rate", type=above_zero, metavar="N", help="at most so many events a second")
    sync.add_argument("--dry-run", action="store_true", help="say how much there is")

    show = command(
        group, "status", "how a migration stands: exit 1 if it is stuck, or failed, or a seal is lost", run_status
    )
    show.add_argument("--task", help="this one (default: the newest)")
    show.add_argument("--all", action="store_true", help="list all migrations to the target")

    cancel = command(group, "cancel", "end a migration that has moved nothing; its copies go", run_cancel)
    cancel.add_argument("--task", help="this one (default: the newest that has not ended)")
    cancel.add_argument("--dry-run", action="store_true")

    retire = command(group, "retire", "end a migration: its sessions stay moved, their seals for ever", run_retire)
    retire.add_argument("--task", help="this one (default: the newest that has not ended)")
    retire.add_argument("--dry-run", action="store_true")


def command(
    group: Any, name: str, purpose: str, run: Callable[[argparse.Namespace, Settings], int]
) -> argparse.ArgumentParser:
    """One subcommand between two servers."""
    parser: argparse.ArgumentParser = group.add_parser(name, help=purpose, description=purpose)
    parser.set_defaults(run=run)
    parser.add_argument("--from", dest="from_url", metavar="URL", help="the source (MUSTER_MIGRATE__FROM_URL)")
    parser.add_argument("--to", dest="to_url", metavar="URL", help="the target (MUSTER_MIGRATE__TO_URL)")
    for side in ("from", "to"):
        for part in ("environment", "namespace"):
            parser.add_argument(f"--{side}-{part}", metavar="NAME", help=f"{part} there (MUSTER_{part.upper()})")
    arguments.output(parser)
    return parser


def selection(parser: argparse.ArgumentParser) -> None:
    """Which sessions are meant."""
    parser.add_argument("--session", action="append", default=[], metavar="ID", help="this one; may be repeated")
    filtering.options(parser)


def chosen(parser: argparse.ArgumentParser) -> None:
    """Which migration is meant, and which of its sessions."""
    parser.add_argument("--task", help="this migration (default: the newest from there that has not ended)")
    if not any(action.dest == "session" for action in parser._actions):
        parser.add_argument("--session", action="append", default=[], metavar="ID", help="of it only this one; …")


def working(parser: argparse.ArgumentParser) -> None:
    """How work is done."""
    chosen(parser)
    parser.add_argument("--rate", type=above_zero, metavar="N", help="at most so many events a second")
    parser.add_argument("--dry-run", action="store_true", help="say how much it would touch")
    parser.add_argument("--job", action="store_true", help="have the target's workers do it (MUSTER_JOBS__URL)")
    parser.add_argument("--wait", action="store_true", help="with --job: return when it has ended")


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


# -- commands --------------------------------------------------------------------------------------------------------


def run_plan(options: argparse.Namespace, settings: Settings) -> int:
    with both(options, settings) as ends:
        made = planning.plan(ends, wanted(options))
        printing.document(planning.told(ends, made), options.output)
    return 1 if made.is_hindered else 0


def run_copy(options: argparse.Namespace, settings: Settings) -> int:
    with both(options, settings) as ends:
        if options.dry_run:
            made = planning.plan(ends, wanted(options))
            what = f"copy {made.events} events of {made.sessions} sessions"
            return would(what, planning.told(ends, made), options)
        migration = begun(ends, options)
        if options.job:
            return asked(ends, migration, options, settings, "copy")
        with worked(ends, migration, options, "copy", record.COPYING, record.COPIED) as work:
            done = work.copy()
        return shown(ends, migration, options, done)


def run_verify(options: argparse.Namespace, settings: Settings) -> int:
    """Exit 8 if anything is found."""
    with both(options, settings) as ends:
        migration = found(ends, options)
        if options.dry_run:
            printing.say(f"dry run: would compare the sessions of migration {migration.id}")
            return 0
        if options.job:
            return asked(ends, migration, options, settings, "verify")
        with worked(ends, migration, options, "verify", migration.state, migration.state) as work:
            compared = work.assert_seals() if options.seals else work.verify(options.session or None)
    problems = [msgspec.to_builtins(problem) for problem in compared.problems]
    for problem in compared.problems:
        printing.say(f"{problem.severity}: {problem.code} at seq {problem.seq}: {problem.cause}")
    printing.document(
        {
            "schema": PROBLEMS_SCHEMA,
            "task": migration.id,
            "sessions": compared.sessions,
            "commits": compared.commits,
            "events": compared.events,
            "views": compared.views,
            "problems": problems,
        },
        options.output,
    )
    return 8 if problems else 0


def run_cutover(options: argparse.Namespace, settings: Settings) -> int:
    with both(options, settings) as ends:
        migration = moves(found(ends, options))
        if options.dry_run:
            told, due = stands(ends, migration, options)
            return would(f"move {due['sessions'] - due['moved']} sessions", told, options)
        if options.job:
            return asked(ends, migration, options, settings, "cutover")
        with worked(ends, migration, options, "cutover", record.CUTTING, record.MOVED) as work:
            done = work.cutover(options.session or None, proof=options.proof)
        return shown(ends, migration, options, done)


def run_rollback(options: argparse.Namespace, settings: Settings) -> int:
    with both(options, settings) as ends:
        migration = moves(found(ends, options))
        if options.dry_run:
            told, due = stands(ends, migration, options)
            return would(f"bring back {due['moved']} moved sessions, drop {due['copied']} copies", told, options)
        options.rate = None
        ends_as = migration.state if options.session else record.ROLLED_BACK
        with worked(ends, migration, options, "rollback", record.ROLLING_BACK, ends_as) as work:
            done = work.rollback(options.session or None, carry_back=options.carry_back)
            if done.failed and not options.session:
                raise Conflict("MIGRATION_UNFINISHED", f"{done.failed} sessions could not be brought back")
        return shown(ends, migration, options, done)


def run_sync(options: argparse.Namespace, settings: Settings) -> int:
    """Exit 6 if a round ends with sessions that were written on both sides."""
    with both(options, settings) as ends:
        if options.dry_run:
            made = planning.plan(ends, {})
            what = f"keep {made.sessions} sessions with {made.events} events equal"
            return would(what, planning.told(ends, made), options)
        migration = synced(ends, options)
        if options.once:
            done = round_of(ends, migration, options)
            told = status(ends.target, ends.source, Migrations(ends.target.store).get(migration.id))
            printing.document(told, options.output)
            return 6 if told["conflicts"] else 7 if done.failed else 0
        keep_on(ends, migration, options)
    return 0


def run_status(options: argparse.Namespace, settings: Settings) -> int:
    with one_end(address_of("to", options, settings)) as target:
        if options.all:
            rows = [msgspec.to_builtins(one) for one in Migrations(target.store).all()]
            printing.rows(rows, options.output, columns=("id", "kind", "state", "source", "target", "holder", "who"))
            return 0
        migration = meant(target, options, None, or_newest=True)
        try:
            with one_end(source_of(migration, settings)) as source:
                told = status(target, source, migration)
        except Unavailable as away:
            printing.say(f"the source is away: {away.code}: {away.cause}")
            told = status(target, None, migration)
    printing.document(told, options.output)
    return 0 if is_well(told) else 1


def run_cancel(options: argparse.Namespace, settings: Settings) -> int:
    with both(options, settings) as ends:
        migration = moves(found(ends, options))
        told = status(ends.target, ends.source, migration)
        if told["moved"] or told["sealed"]:
            raise Conflict(
                "MIGRATION_UNFINISHED", f"{told['moved']} sessions were moved, {told['sealed']} are sealed to be"
            )
        if options.dry_run:
            return would(f"drop {told['copied']} copies", told, options)
        options.rate, options.session = None, []
        with worked(ends, migration, options, "cancel", record.ROLLING_BACK, record.CANCELLED) as work:
            done = work.rollback()
        return shown(ends, migration, options, done)


def run_retire(options: argparse.Namespace, settings: Settings) -> int:
    with both(options, settings) as ends:
        migration = moves(found(ends, options))
        told = status(ends.target, ends.source, migration)
        if told["sealed"] or told["copied"] > told["moved"] or told["seals"]["lost"]:
            raise Conflict("MIGRATION_UNFINISHED", f"of {told['copied']} sessions {told['moved']} are moved and sealed")
        if told["cursors_waiting"]:
            raise Conflict(
                "MIGRATION_UNFINISHED", f"{told['cursors_waiting']} cursors of subscriptions wait for the next cutover"
            )
        if options.dry_run:
            return would(f"leave {told['moved']} sessions moved", told, options)
        options.rate, options.session = None, []
        with worked(ends, migration, options, "retire", migration.state, record.RETIRED):
            pass
        return shown(ends, migration, options, Done(sessions=told["moved"]))


# -- standbys --------------------------------------------------------------------------------------------------------


def synced(ends: Ends, options: argparse.Namespace) -> Migration:
    """The standby's migration: the one that is named, the open one, or a new one."""
    if options.task is not None:
        return found(ends, options)
    migrations = Migrations(ends.target.store)
    for one in migrations.all():
        if one.kind == "sync" and one.source_store == ends.source.place.store and one.state not in record.ENDED:
            return one
    return migrations.create(ends, "sync", {}, arguments.who())


def syncing(ends: Ends, migration: Migration, options: argparse.Namespace, by: str) -> Syncing:
    pace = Pace(printing.Progress(), verb="synced", per_s=options.rate)
    return Syncing(ends, migration, by=by, who=arguments.who(), policy=options.policy, pace=pace, say=printing.say)


def round_of(ends: Ends, migration: Migration, options: argparse.Namespace) -> Synced:
    """One round."""
    holding = Holding(ends.target, migration, printing.say)
    with holding.phase(record.SYNCING, record.IN_SYNC):
        work = syncing(ends, migration, options, holding.token)
        if not options.session:
            return work.round()
        done = Synced()
        work.sessions(options.session, done)
        return done


def keep_on(ends: Ends, migration: Migration, options: argparse.Namespace) -> None:
    """Round after round, through outages of either side, until somebody ends it: after the round that is under way, a
    second time at once.
    """
    holding = Holding(ends.target, migration, printing.say)
    progress, stop = printing.Progress(), Stop()
    # By a flag: a KeyboardInterrupt is lost where the interpreter is just in a finalizer.
    with until_stopped(stop) as impatient, holding.phase(record.SYNCING, record.IN_SYNC):
        impatient(lambda: os._exit(130))
        work = syncing(ends, migration, options, holding.token)
        while True:
            try:
                done = work.round()
                behind = lag_of(ends, migration.id)
                progress(f"{behind.events} events behind, {behind.seconds:.1f} s; {done.conflicts} conflicts")
            except (Unavailable, RedisError) as error:
                away = error if isinstance(error, Unavailable) else connection_error(error)
                if not isinstance(away, Unavailable):
                    raise away from error
                progress(f"{away.code}: {away.cause}")
            if stop.wait(options.every):
                raise KeyboardInterrupt


# -- what commands share ---------------------------------------------------------------------------------------------


@contextmanager
def both(options: argparse.Namespace, settings: Settings) -> Iterator[Ends]:
    """Both ends, as options and settings name them. Raises Refused (USAGE) where one is not named."""
    with opened(address_of("from", options, settings), address_of("to", options, settings)) as ends:
        yield ends


def address_of(side: str, options: argparse.Namespace, settings: Settings) -> Address:
    """How one end is reached."""
    names = {part: getattr(options, f"{side}_{part}") for part in ("environment", "namespace")}
    return address(side, settings, **names)


def wanted(options: argparse.Namespace) -> dict[str, Any]:
    """The selection that the options make."""
    return selection_of(options.session, filtering.filter_of(options))


def begun(ends: Ends, options: argparse.Namespace, kind: str = "move") -> Migration:
    """The migration to go on with: the one that is named; the open one, if it is of the same sessions; or a new one."""
    if options.task is not None:
        return found(ends, options)
    migrations, asked_for = Migrations(ends.target.store), wanted(options)
    for one in migrations.all():
        is_open = one.source_store == ends.source.place.store and one.state not in record.ENDED
        if is_open and one.kind == kind and one.selection == asked_for:
            return one
    return migrations.create(ends, kind, asked_for, arguments.who())


def found(ends: Ends, options: argparse.Namespace) -> Migration:
    """The migration that is meant. Raises NotFound (MIGRATION_UNKNOWN), Conflict (MIGRATION_OVER)."""
    return meant(ends.target, options, ends.source.place.store)


def meant(target: End, options: argparse.Namespace, source_store: str | None, *, or_newest: bool = False) -> Migration:
    """As `found`; from any source where none is given, and one that is over too with `or_newest`."""
    migrations = Migrations(target.store)
    if options.task is not None:
        migration = migrations.get(options.task)
    else:
        known = [one for one in migrations.all() if source_store in (None, one.source_store)]
        still = [one for one in known if one.state not in record.ENDED]
        if not still and not (known and or_newest):
            raise NotFound("MIGRATION_UNKNOWN", "no migration from there is open")
        migration = (still or known)[0]
    if migration.state in record.ENDED and not or_newest:
        raise Conflict("MIGRATION_OVER", f"migration {migration.id} is {migration.state}")
    return migration


def moves(migration: Migration) -> Migration:
    """The migration, if it moves sessions. Raises Refused (USAGE) for one that keeps a standby."""
    if migration.kind != "move":
        raise Refused("USAGE", f"migration {migration.id} keeps a standby: `muster failover` is for it")
    return migration


def source_of(migration: Migration, settings: Settings) -> Address:
    """Where a migration's sessions come from, by its record, with the user that the settings name."""
    place = parse_place(migration.source)
    assert place is not None
    url = settings.migrate.from_url or place.url
    return address("from", settings, url=url, environment=place.environment, namespace=place.namespace)


@contextmanager
def worked(
    ends: Ends, migration: Migration, options: argparse.Namespace, what: str, begins: str, ends_as: str | None
) -> Iterator[Moving]:
    """A phase, under the migration's lease; noted in both audit streams."""
    pace = Pace(printing.Progress(), verb=what, per_s=options.rate)
    batch = getattr(options, "batch", BATCH)
    who = arguments.who()
    work = Moving(ends, migration, who=who, pace=pace, say=printing.say, batch=batch)
    with work.phase(begins, ends_as):
        for end in (ends.source, ends.target):
            end.note(who, f"migration: {what}", task=migration.id, source=migration.source, target=migration.target)
        yield work


def stands(ends: Ends, migration: Migration, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the migration stands; and the same, but counted over the sessions that are named, if any are."""
    told = status(ends.target, ends.source, migration)
    return told, told | counted(ends.target, migration, options.session) if options.session else told


def would(what: str, told: dict[str, Any], options: argparse.Namespace) -> int:
    """Prints what a dry run comes to, and how things stand."""
    printing.say(f"dry run: would {what}")
    printing.document(told, options.output)
    return 0


def shown(ends: Ends, migration: Migration, options: argparse.Namespace, done: Done) -> int:
    """Prints how the migration stands; returns what came of a phase as an exit code."""
    told = status(ends.target, ends.source, Migrations(ends.target.store).get(migration.id))
    printing.document(told, options.output)
    printing.say(f"{done.sessions} sessions, {done.events} events, {done.failed} failed")
    return 7 if done.failed else 0


def asked(ends: Ends, migration: Migration, options: argparse.Namespace, settings: Settings, phase: str) -> int:
    """Has the target's workers do a phase."""
    queue = JobQueue(settings, ends.target.log)
    task = queue.tasks.create(
        "migrate",
        range(ends.source.keyspace.count),
        {"migration": migration.id, "phase": phase, "rate": options.rate},
        arguments.who(),
    )
    queue.send(task.id)
    printing.say(f"job {task.id}")
    if options.wait:
        task = awaited(queue.tasks, task.id, None)
    queue.close()
    told = status(ends.target, ends.source, Migrations(ends.target.store).get(migration.id)) | {"job": task.id}
    printing.document(told, options.output)
    return 1 if task.error else 7 if task.result.get("failed") else 0
