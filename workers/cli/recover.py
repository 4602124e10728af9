"""`muster recover`: plans and applies repairs of what verification finds."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from domain.errors import Misconfigured, NotFound, Refused
from domain.log import SessionLog
from domain.log.protocol import unknown_session
from projections.accepting import accept, given_up
from projections.drift import Validator
from projections.findings import Finding
from projections.grafting import Graft, Grafting, Unfit
from projections.lease import Leases
from projections.store import ProjectionStore
from workers.cli import arguments, printing
from workers.cli.parked import checked_why
from workers.fleet import until_stopped
from workers.pacing import Pace, Stopped
from workers.recovery import Plan, Recovery, being_built, mendable, plan_of, sized, with_grafts
from workers.settings import Settings
from workers.sources import open_source
from workers.stopping import Stop

FINDING_COLUMNS = ("code", "kind", "session", "agent", "first_bad_seq", "partition")
#: How often it is looked whether workers have built everything, in seconds.
LOOK_EVERY_S: Final = 0.1


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    plan = arguments.command(group, "plan", "verify everything and say what recovery would do", run_plan)
    _from(plan)
    plan.add_argument("--file", type=Path, help="write the plan here, for `recover apply PLAN`")
    apply = arguments.command(group, "apply", "verify, plan and repair; or carry out a plan", run_apply)
    apply.add_argument("plan", nargs="?", type=Path, help="a plan made by `recover plan --file`")
    _from(apply)
    apply.add_argument("--rate", type=float, metavar="N", help="go through at most so many events a second")
    apply.add_argument("--dry-run", action="store_true", help="only print the plan")
    undo = arguments.command(group, "undo", "put back the view that recovery replaced, within a week", run_undo)
    undo.add_argument("session", help="the session whose view it is")
    undo.add_argument("--dry-run", action="store_true", help="say how much it would touch")
    accept = arguments.command(
        group,
        "accept",
        "give up the damaged end of a quarantined log: the session goes on",
        run_accept,
    )
    accept.add_argument("session", help="the session whose log it is")
    accept.add_argument("--why", required=True, metavar="TEXT", help="the reason, which is kept with the log")
    accept.add_argument("--dry-run", action="store_true", help="say what would be given up")


def _from(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="source",
        metavar="ARCHIVE|BACKUP",
        help="complete damaged logs first, where digests fit: the folder of a backup, or an archive's folder or s3://…",
    )


def run_undo(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        if not store.is_registered(options.session):
            raise unknown_session(options.session)
        if options.dry_run:
            kept = store.client.get(log.keyspace.of(options.session).replaced(options.session))
            printing.say(f"dry run: would put back {0 if kept is None else 1} view")
            return 0
        Recovery(store, log, who=f"recovery:{arguments.who()}", progress=printing.Progress()).undo(options.session)
    printing.document({"schema": "muster.undone/1", "session": options.session, "views": 1}, options.output)
    return 0


def run_accept(options: argparse.Namespace, settings: Settings) -> int:
    why = checked_why(options.why)
    with arguments.opened(settings) as (log, store):
        if not store.is_registered(options.session) and store.heads([options.session]) == [None]:
            raise unknown_session(options.session)
        if options.dry_run:
            done, _ = given_up(store, log, options.session)
            printing.say(f"dry run: would give up {done.given_up} commits after seq {done.prefix}")
        else:
            done = accept(store, log, options.session, who=f"recovery:{arguments.who()}", why=why)
    printing.document({"schema": "muster.accepted-loss/1", **msgspec.to_builtins(done)}, options.output)
    return 0


def run_plan(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        grafting = grafting_from(options.source, settings, log, store)
        plan = made_plan(log, store, grafting)
    if options.file is not None:
        options.file.write_bytes(msgspec.json.encode(plan) + b"\n")
    show(plan, options.output)
    return 0


def run_apply(options: argparse.Namespace, settings: Settings) -> int:
    if options.rate is not None and not options.rate > 0:
        raise Refused("USAGE", f"--rate must be more than 0, not {options.rate:g}")
    began = time.monotonic()
    with arguments.opened(settings) as (log, store):
        grafting = grafting_from(options.source, settings, log, store)
        plan = made_plan(log, store, grafting) if options.plan is None else read_plan(options.plan, log)
        if plan.grafts and grafting is None:
            raise Refused("USAGE", "the plan completes logs: say again where from, with --from")
        if options.dry_run:
            show(plan, options.output)
            return 0
        stop = Stop()
        grafted: list[Graft | Unfit] = []
        with until_stopped(stop) as impatient:
            impatient(lambda: os._exit(130))
            pace = Pace(printing.Progress(), verb="went through", total=plan.events, per_s=options.rate, stop=stop)
            recovery = Recovery(store, log, who=f"recovery:{arguments.who()}", progress=printing.Progress(), pace=pace)
            try:
                for done in grafting.apply([one.session for one in plan.grafts]) if grafting is not None else ():
                    grafted.append(done)
                    pace.took(done.seq if isinstance(done, Graft) else 0)
                left: list[Finding] | None = recovery.apply(plan)
            except Stopped:
                printing.say("stopped: what is done is done; the next `muster recover apply` goes on with the rest")
                left = None
    unfit = [*plan.unfit, *(one for one in grafted if isinstance(one, Unfit))]
    document = {
        "schema": "muster.recovery/1",
        "found": len(plan.findings),
        "repaired": None if left is None else len(plan.findings) - len(left),
        "quarantined": recovery.repaired.quarantined,
        "left": msgspec.to_builtins(left),
        "sessions": recovery.repaired.sessions,
        "changed": recovery.repaired.changed,
        "grafted": msgspec.to_builtins([one for one in grafted if isinstance(one, Graft)]),
        "unfit": msgspec.to_builtins(unfit),
        "stopped": left is None,
        "seconds": round(time.monotonic() - began, 3),
    }
    printing.document(document, options.output)
    return 0 if left == [] and not unfit else 7


def grafting_from(source: str | None, settings: Settings, log: SessionLog, store: ProjectionStore) -> Grafting | None:
    """What completes logs from an archive or a backup, if one was named."""
    if source is None:
        return None
    found = open_source(source, log.identity.store, archive=settings.archive, say=printing.say)
    return Grafting(store, log, found, who=f"recovery:{arguments.who()}")


def made_plan(log: SessionLog, store: ProjectionStore, grafting: Grafting | None = None) -> Plan:
    """The plan for everything that is found now, once workers have built what they are building from nothing."""
    leases, progress = Leases(log.client, log.keyspace, ""), printing.Progress()
    while partitions := being_built(store, leases):
        progress(f"workers build {len(partitions)} partitions from their logs")
        time.sleep(LOOK_EVERY_S)
    total = sum(count for _, count in store.standing(range(store.keyspace.count)).values())
    pace = Pace(progress, verb="verified", total=total)
    validator = Validator(store, log, went_through=pace.took)
    plan = plan_of(log.identity.store, validator.everything())
    printing.say(f"verified {validator.read.sessions} sessions: {len(plan.findings)} findings")
    if grafting is not None:
        plan = with_grafts(plan, grafting.plan(mendable(plan)), log.keyspace)
    return sized(plan, store, pace.per_s)


def read_plan(path: Path, log: SessionLog) -> Plan:
    """A plan from its file. Raises NotFound (FILE_UNREADABLE), Misconfigured (STORE_CHANGED) if it is for another
    store.
    """
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, msgspec.MsgspecError) as error:
        raise NotFound("FILE_UNREADABLE", f"{path} is no plan that can be read: {error}") from None
    if plan.store != log.identity.store:
        raise Misconfigured("STORE_CHANGED", f"the plan is for store {plan.store}, this is {log.identity.store}")
    return plan


def show(plan: Plan, output: str) -> None:
    if output == "table":
        printing.rows(map(msgspec.to_builtins, plan.findings), "table", columns=FINDING_COLUMNS)
        for graft in plan.grafts:
            print(
                f"would complete {graft.session} to seq {graft.seq}: {graft.commits} commits after seq {graft.prefix}, "
                f"{graft.put_aside} put aside"
            )
        for unfit in plan.unfit:
            print(f"cannot complete {unfit.session} from seq {unfit.first_bad_seq}: {unfit.cause}")
        whole = sum(part.whole for part in plan.partitions)
        sessions = sum(len(part.sessions) for part in plan.partitions)
        print(f"{len(plan.findings)} findings; would rebuild {sessions} sessions and {whole} whole partitions")
        if plan.seconds is not None:
            print(f"{plan.sessions} sessions, {plan.events} events, about {plan.seconds:g} s")
    else:
        printing.document(msgspec.to_builtins(plan), output)
