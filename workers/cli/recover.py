"""`muster recover`: plans and applies repairs of what verification finds."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import msgspec

from domain.errors import Misconfigured, NotFound
from domain.log import SessionLog
from projections.drift import Validator
from projections.queries import unknown_session
from projections.store import ProjectionStore
from workers.cli import arguments, printing
from workers.recovery import Plan, Recovery, plan_of
from workers.settings import Settings

FINDING_COLUMNS = ("code", "kind", "session", "agent", "first_bad_seq", "partition")


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    plan = arguments.command(group, "plan", "verify everything and say what recovery would do", run_plan)
    plan.add_argument("--file", type=Path, help="write the plan here, for `recover apply PLAN`")
    apply = arguments.command(group, "apply", "verify, plan and repair; or carry out a plan", run_apply)
    apply.add_argument("plan", nargs="?", type=Path, help="a plan made by `recover plan --file`")
    apply.add_argument("--dry-run", action="store_true", help="only print the plan")
    undo = arguments.command(group, "undo", "put back the view that recovery replaced, within a week", run_undo)
    undo.add_argument("session", help="the session whose view it is")
    undo.add_argument("--dry-run", action="store_true", help="say how much it would touch")


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


def run_plan(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        plan = made_plan(log, store)
    if options.file is not None:
        options.file.write_bytes(msgspec.json.encode(plan) + b"\n")
    show(plan, options.output)
    return 0


def run_apply(options: argparse.Namespace, settings: Settings) -> int:
    began = time.monotonic()
    with arguments.opened(settings) as (log, store):
        plan = made_plan(log, store) if options.plan is None else read_plan(options.plan, log)
        if options.dry_run:
            show(plan, options.output)
            return 0
        recovery = Recovery(store, log, who=f"recovery:{arguments.who()}", progress=printing.Progress())
        left = recovery.apply(plan)
        done = recovery.repaired
    printing.document(
        {
            "schema": "muster.recovery/1",
            "found": len(plan.findings),
            "repaired": len(plan.findings) - len(left),
            "quarantined": done.quarantined,
            "left": msgspec.to_builtins(left),
            "seconds": round(time.monotonic() - began, 3),
        },
        options.output,
    )
    return 7 if left else 0


def made_plan(log: SessionLog, store: ProjectionStore) -> Plan:
    """The plan for everything that is found now."""
    validator = Validator(store, log)
    plan = plan_of(log.identity.store, validator.everything())
    printing.say(f"verified {validator.read.sessions} sessions: {len(plan.findings)} findings")
    return plan


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
        whole = sum(part.whole for part in plan.partitions)
        sessions = sum(len(part.sessions) for part in plan.partitions)
        print(f"{len(plan.findings)} findings; would rebuild {sessions} sessions and {whole} whole partitions")
    else:
        printing.document(msgspec.to_builtins(plan), output)
