"""`muster projection`: which there are, how far they are, whether they are true, and building them again."""

from __future__ import annotations

import argparse
import time
from itertools import chain
from typing import Any

import msgspec
import redis

from domain.errors import DeadlineExceeded, Refused
from domain.log.protocol import unknown_session
from projections.drift import Validator
from projections.lag import MOVING, Lag, eta_s, lag
from projections.scrub import summed, verified
from projections.session_view import rfc3339
from projections.store import ProjectionStore
from workers.cli import arguments, own_projections, printing
from workers.pacing import Pace
from workers.recovery import Recovery
from workers.settings import Settings

LAG_COLUMNS = ("partition", "state", "events", "seconds", "session", "position", "total", "owner")
FINDING_COLUMNS = ("code", "severity", "kind", "session", "agent", "first_bad_seq", "quarantined", "remedy")
#: How often `lag --wait` looks, in seconds.
LOOK_EVERY_S = 0.05
#: How long the pace is watched to say when the views will have caught up, in seconds.
ETA_OVER_S = 0.5


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)

    how_far = arguments.command(group, "lag", "how far the views are behind the log", run_lag)
    how_far.add_argument("--wait", action="store_true", help="return when they have caught up")
    how_far.add_argument(
        "--timeout", type=float, metavar="S", help="with --wait: give up after so many seconds (exit 10)"
    )
    how_far.add_argument("--projection", metavar="NAME[@V]", help="of this own projection instead of the built-in one")

    verify = arguments.command(group, "verify", "read the log again and compare everything with it", run_verify)
    which = verify.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="everything")
    which.add_argument("--session", help="one session")
    verify.add_argument("--info", action="store_true", help="also what is worth knowing and no drift")

    again = arguments.command(
        group, "rebuild", "build everything again from the log, beside what is there", run_rebuild
    )
    again.add_argument(
        "name", nargs="?", help="an own projection, by its class in this process; none: the built-in one"
    )
    again.add_argument(
        "--version", type=int, metavar="V", help="of the own projection (default: the newest known here)"
    )
    again.add_argument("--rehearse", action="store_true", help="with NAME: only print what would differ; exit 1 if any")
    again.add_argument("--partition", type=int, action="append", help="only this partition; may be repeated")
    again.add_argument("--dry-run", action="store_true", help="say how much it would touch")

    own_projections.configure(group)


def run_lag(options: argparse.Namespace, settings: Settings) -> int:
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    progress = printing.Progress()
    with arguments.opened(settings) as (log, built_in):
        store = own_projections.store_of(log, options.projection) if options.projection else built_in
        while True:
            try:
                found = lag(store)
            except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
                if not options.wait:
                    raise
                progress(f"waiting for the server: {error}")
                found = None
            if found is not None and (not options.wait or found.events == 0):
                break
            if deadline is not None and time.monotonic() > deadline:
                behind = "the server" if found is None else f"{found.events} events"
                raise DeadlineExceeded("BEHIND", f"after {options.timeout:g} s still waiting for {behind}")
            if found is not None:
                idle = sum(1 for part in found.partitions if part.events and part.owner is None)
                progress(f"{found.events} events behind" + (f"; {idle} partitions have no worker" if idle else ""))
            time.sleep(LOOK_EVERY_S)
        eta = None if options.wait else _eta_s(store, found)
        verification = None if options.projection else _verification(built_in)
    document: dict[str, Any] = {"schema": "muster.lag/1", "eta_s": eta, **msgspec.to_builtins(found)}
    document["verification"] = verification
    if options.output == "table":
        behind_rows = [row for row in document["partitions"] if row["events"]]
        printing.rows(behind_rows, "table", columns=LAG_COLUMNS)
        print(f"{found.events} events, {found.seconds:.3f} s behind; {found.applied} applied")
        if found.events:
            pace = "not getting fewer" if eta is None else f"caught up in about {eta:.1f} s"
            print(f"{pace}; waiting longest: session {found.session or 'unknown'}")
        if verification is not None:
            print(
                f"verified up to {verification['up_to'] or 'never'}: {verification['events']} events since, "
                f"{verification['unread']} sessions never read, {verification['drifted']} with findings"
            )
    else:
        printing.document(document, options.output)
    return 0


def _verification(store: ProjectionStore) -> dict[str, Any]:
    """How far scrubbing has verified the store, with its times as text."""
    told = summed(verified(store))
    for part in (told, *told["partitions"]):
        for name in ("up_to", "oldest_read"):
            part[name] = None if part[name] is None else rfc3339(part[name])
    return told


def _eta_s(store: ProjectionStore, found: Lag) -> float | None:
    """When the views will have caught up, by a second look; 0 if they have, None if nothing moves."""
    if not any(part.state == MOVING for part in found.partitions):
        return None if found.events else 0.0
    began = time.monotonic()
    time.sleep(ETA_OVER_S)
    return eta_s(found, lag(store), time.monotonic() - began)


def run_verify(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        pace = Pace(printing.Progress(), verb="verified", total=lag(store).total if options.all else 0)
        validator = Validator(store, log, went_through=pace.took)
        if options.session is not None and not store.is_registered(options.session):
            raise unknown_session(options.session)
        findings = validator.everything() if options.all else validator.session(options.session)
        shown = (msgspec.to_builtins(finding) for finding in findings if options.info or finding.severity != "info")
        own = own_projections.verify_own(settings, log, printing.say) if options.all else iter(())
        count = printing.rows(chain(shown, own), options.output, columns=FINDING_COLUMNS)
        read = validator.read
        printing.say(
            f"read {read.sessions} sessions, {read.events} events in {read.partitions or 'part of 1'} partitions: "
            f"{count or 'no'} finding{'' if count == 1 else 's'}"
        )
    return 1 if count else 0


def run_rebuild(options: argparse.Namespace, settings: Settings) -> int:
    if options.name is not None:
        return own_projections.run_rebuild_own(options, settings)
    if options.rehearse or options.version is not None:
        raise Refused("USAGE", "--rehearse and --version need the NAME of an own projection")
    with arguments.opened(settings) as (log, store):
        partitions = store.keyspace.chosen(options.partition)
        if options.dry_run:
            sessions = sum(len(page) for partition in partitions for page in store.member_pages(partition))
            printing.say(f"dry run: would rebuild {sessions} sessions in {len(partitions)} partitions")
            return 0
        progress = printing.Progress()
        total = sum(store.total(partition) for partition in partitions)
        pace = Pace(progress, verb="rebuilt", total=total)
        recovery = Recovery(store, log, who=f"recovery:{arguments.who()}", progress=progress, pace=pace)
        began = time.monotonic()
        done = recovery.rebuild(partitions)
        seconds = round(time.monotonic() - began, 3)
        printing.document(
            {"schema": "muster.rebuild/1", **msgspec.to_builtins(done), "seconds": seconds}, options.output
        )
    return 7 if done.quarantined else 0
