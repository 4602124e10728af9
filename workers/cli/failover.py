"""`muster failover`: a standby takes appends, and the old side takes none any more."""

from __future__ import annotations

import argparse
import time
from typing import Any, Final

import msgspec

from domain.errors import NotFound, Unavailable
from workers.cli import arguments, printing
from workers.cli.migrate import address_of, source_of
from workers.migration import record
from workers.migration.ends import Address, End, Ends, one_end
from workers.migration.failing_over import FailingOver
from workers.migration.holding import Holding
from workers.migration.record import Migration, Migrations
from workers.migration.syncing import Synced, Syncing
from workers.pacing import Pace
from workers.settings import Settings

SCHEMA: Final = "muster.failover/1"
#: How often the old side is tried, with --wait, in seconds.
TRY_EVERY_S: Final = 2.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run)
    parser.add_argument("--to", dest="to_url", metavar="URL", help="the standby (MUSTER_MIGRATE__TO_URL)")
    parser.add_argument("--to-environment", metavar="NAME", help="environment there (MUSTER_ENVIRONMENT)")
    parser.add_argument("--to-namespace", metavar="NAME", help="namespace there (MUSTER_NAMESPACE)")
    parser.add_argument(
        "--from", dest="from_url", metavar="URL", help="the old side, if not where the standby knows it"
    )
    parser.add_argument("--task", help="the standby's migration (default: the newest)")
    parser.add_argument("--wait", action="store_true", help="keep trying the old side until it is closed")
    parser.add_argument("--dry-run", action="store_true", help="say what would be opened, and how far behind it is")
    arguments.output(parser)


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Exit 0 if the old side is closed and nothing is missing, 7 if something is, 1 if it could not be closed yet."""
    with one_end(address_of("to", options, settings)) as target:
        migration = standby(target, options.task)
        old = source_of(migration, settings)
        if options.dry_run:
            return dry_run(target, migration, options)
        holding = Holding(target, migration, printing.say)
        who = arguments.who()
        with holding.phase(record.FAILING_OVER):
            work = FailingOver(target, migration, by=holding.token, who=who, say=printing.say)
            target.note(who, "failover", task=migration.id, source=migration.source, target=migration.target)
            is_new = migration.state != record.UNFENCED
            is_fenced = fenced(work, old, target, migration, holding, bring=is_new)
            work.open()
            holding.becomes(record.FAILED_OVER if is_fenced else record.UNFENCED)
            while options.wait and not is_fenced:
                time.sleep(TRY_EVERY_S)
                is_fenced = fenced(work, old, target, migration, holding, bring=False)
                holding.becomes(record.FAILED_OVER if is_fenced else record.UNFENCED)
        printing.document(told(target, migration, work, is_fenced), options.output)
    return 1 if not is_fenced else 7 if work.done.missing else 0


def standby(target: End, task: str | None) -> Migration:
    """The migration that keeps the standby. Raises NotFound (MIGRATION_UNKNOWN)."""
    migrations = Migrations(target.store)
    if task is not None:
        return migrations.get(task)
    for one in migrations.all():
        if one.kind == "sync" and one.state not in (record.CANCELLED, record.RETIRED):
            return one
    raise NotFound("MIGRATION_UNKNOWN", "nothing keeps this store as a standby: `muster migrate sync` does")


def fenced(
    work: FailingOver, old: Address, target: End, migration: Migration, holding: Holding, *, bring: bool
) -> bool:
    """Closes the old side, if it answers; then everything it had is brought, if the standby is closed still."""
    try:
        with one_end(old) as source:
            ends = Ends(source, target)
            pace = Pace(printing.Progress(), verb="synced")
            syncing = Syncing(
                ends, migration, by=holding.token, who=arguments.who(), policy="manual", pace=pace, say=printing.say
            )

            def rest(sessions: list[str]) -> None:
                syncing.sessions(sessions, Synced(), are_closed=True)

            work.fence(ends, rest if bring else None)
            return True
    except Unavailable as away:
        printing.say(f"the old side is not closed: {away.code}: {away.cause}")
        return False


def told(target: End, migration: Migration, work: FailingOver, is_fenced: bool) -> dict[str, Any]:
    """What was done, and what is known not to have arrived."""
    moves = dict(Migrations(target.store).moves(migration.id))
    return {
        "schema": SCHEMA,
        "task": migration.id,
        "from": migration.source,
        "to": migration.target,
        "epoch": work.done.epoch,
        "opened": work.done.opened,
        "closed": work.done.fenced,
        "fenced": is_fenced,
        "missing": [msgspec.to_builtins(one) for one in work.done.missing],
        "conflicts": {one: move.seq for one, move in sorted(moves.items()) if move.state == "conflict"},
    }


def dry_run(target: End, migration: Migration, options: argparse.Namespace) -> int:
    held = sum(move.state == "synced" for _, move in Migrations(target.store).moves(migration.id))
    printing.say(f"dry run: would open {held} sessions, and raise the epoch from {target.log.identity.epoch}")
    document = {"schema": SCHEMA, "task": migration.id, "from": migration.source, "to": migration.target}
    printing.document(document | {"would_open": held, "epoch": target.log.identity.epoch}, options.output)
    return 0
