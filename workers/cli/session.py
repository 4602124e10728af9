"""`muster session`: what sessions are doing, now or then; forks of them."""

from __future__ import annotations

import argparse
from typing import Any, Final

from msgspec import structs

from domain.errors import Refused
from domain.log.forking import plan_flow
from projections.difference import Change
from projections.forks import compared
from projections.queries import Views
from projections.searching import Filter
from projections.what_happened import RECENT
from workers.cli import arguments, filtering, printing, timeline
from workers.expiry import ALL, Expiry
from workers.settings import Settings

SCHEMA = "muster.session/1"
COUNT_SCHEMA: Final = "muster.count/1"
CONTEXT_SCHEMA: Final = "muster.context/1"
TRANSITION_SCHEMA: Final = "muster.transition/1"
TRANSITION_COLUMNS: Final = (
    *("session", "seq", "time", "actor", "type", "from", "to", "previous_type", "severity", "perf_delta"),
)
COLUMNS = ("session", "seq", "state", "first_actor", "last_type", "last_at", "quarantined")
DIFFERENCE_COLUMNS = ("field", "before", "after")


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    ls = arguments.command(group, "ls", "list sessions by partition and id, or those that meet a filter", run_ls)
    arguments.page(ls, "begin after this session: the last one of the page before; with a filter, after its `cursor`")
    ls.add_argument("--count", action="store_true", help="how many there are, and nothing else")
    filtering.options(ls)
    show = arguments.command(group, "show", "show one session", run_show)
    show.add_argument("session")
    show.add_argument(
        "--at", metavar="SEQ|TIME", help="as it stood right after this seq, or at this time (server's clock)"
    )
    diff = arguments.command(group, "diff", "what differs between two states, field by field", run_diff)
    diff.add_argument("session")
    which = diff.add_mutually_exclusive_group(required=True)
    which.add_argument("--from", dest="before", metavar="SEQ|TIME", help="the state to begin with")
    which.add_argument("--parent", action="store_true", help="of a fork: what it and its parent did since they split")
    diff.add_argument("--to", dest="after", metavar="SEQ|TIME", help="the state to compare it with (default: now)")
    diff.add_argument("--with", dest="other", metavar="SESSION", help="--to is a state of this session")
    timeline.configure(group)
    expire = arguments.command(
        group, "expire", "end the sessions whose time is over, however many they are", run_expire
    )
    expire.add_argument("--dry-run", action="store_true", help="say how many they are")
    fork = arguments.command(group, "fork", "make a new session of another one's beginning", run_fork)
    fork.add_argument("session")
    fork.add_argument("--at", metavar="SEQ|TIME", required=True, help="the last seq to copy; it must end a commit")
    fork.add_argument("--as", dest="name", metavar="SESSION", help="the id of the fork (default: ID@SEQ)")
    fork.add_argument("--dry-run", action="store_true", help="verify, and say how much it would copy")
    context = arguments.command(group, "context", "what whoever takes a session over should know", run_context)
    context.add_argument("session")
    context.add_argument("--recent", type=int, default=RECENT, help=f"how many of the newest events ({RECENT})")
    transitions = arguments.command(
        group, "transitions", "list the events at which sessions went from one state to another", run_transitions
    )
    arguments.page(transitions, "the `cursor` of the last row of the page before")
    filtering.options(transitions, of_events=True)


def run_ls(options: argparse.Namespace, settings: Settings) -> int:
    wanted = filtering.filter_of(options)
    with arguments.opened(settings) as (log, store):
        views, limit = Views(store, log), None if options.all else options.limit
        if options.count:
            printing.document({"schema": COUNT_SCHEMA, "sessions": views.count(wanted)}, options.output)
            return 0
        found = views.sessions(after=options.after, limit=limit)
        if wanted != Filter():
            found = printing.pages(
                lambda after, limit: views.find(wanted, after=after, limit=limit), options.after, limit
            )
        printing.rows(map(with_schema, found), options.output, columns=COLUMNS)
    return 0


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        views = Views(store, log)
        at = None if options.at is None else arguments.moment(options.at)
        found = views.session(options.session) if at is None else views.session_at(options.session, at)
        printing.document(with_schema(found), options.output)
    return 0


def run_context(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        found = Views(store, log).context(options.session, recent=options.recent)
        printing.document({"schema": CONTEXT_SCHEMA, **found}, options.output)
    return 0


def run_transitions(options: argparse.Namespace, settings: Settings) -> int:
    times = {"since": options.since, "until": options.until}
    options.since = options.until = None  # of the events, not of their sessions
    wanted = filtering.filter_of(options)
    with arguments.opened(settings) as (log, store):
        views = Views(store, log)
        found = printing.pages(
            lambda after, limit: views.transitions(wanted, **times, after=after, limit=limit),
            options.after,
            None if options.all else options.limit,
        )
        rows = ({"schema": TRANSITION_SCHEMA, **event} for event in found)
        printing.rows(rows, options.output, columns=TRANSITION_COLUMNS)
    return 0


def run_expire(options: argparse.Namespace, settings: Settings) -> int:
    ends = settings.sessions
    with arguments.opened(settings) as (log, store):
        expiry = Expiry(log, store, idle_s=ends.idle_s, grace_s=ends.grace_s)
        ending = expiry.due(store.server_ms(), range(log.keyspace.count), most=ALL).ending
        expired = 0 if options.dry_run else expiry.end(ending)
        printing.document({"schema": "muster.expiry/1", "due": len(ending), "expired": expired}, options.output)
    return 0


def run_diff(options: argparse.Namespace, settings: Settings) -> int:
    if options.parent:
        return run_diff_with_parent(options, settings)
    before = arguments.moment(options.before)
    after = None if options.after is None else arguments.moment(options.after)
    with arguments.opened(settings) as (log, store):
        found = Views(store, log).difference(options.session, before, after, other=options.other)
    printing.rows(map(change_row, found), options.output, columns=DIFFERENCE_COLUMNS)
    return 0


def run_diff_with_parent(options: argparse.Namespace, settings: Settings) -> int:
    if options.after is not None or options.other is not None:
        raise Refused("USAGE", "--parent compares a fork as it stands: it takes no --to and no --with")
    with arguments.opened(settings) as (log, store):
        found = compared(Views(store, log), log, options.session)
    if options.output == "table":
        how = "a copy" if found.is_copy else "NO COPY"
        print(f"{found.session} split from {found.parent} after seq {found.seq}; up to there it is {how} of it")
        for side in (found.fork, found.parents):
            print(f"\n{side.session}: {side.events} events since")
            printing.rows(map(change_row, side.changes), "table", columns=DIFFERENCE_COLUMNS)
    else:
        document = {"schema": "muster.fork-comparison/1", **structs.asdict(found)}
        for name, since in (("fork", found.fork), ("parents", found.parents)):
            document[name] = {**structs.asdict(since), "changes": list(map(change_row, since.changes))}
        printing.document(document, options.output)
    return 0 if found.is_copy else 1


def run_fork(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        at = Views(store, log).seq_at(options.session, arguments.moment(options.at))
        plan = log.run(plan_flow(options.session, at, options.name))
        if plan.parent_quarantined:
            printing.say(f"session {plan.parent} is quarantined; it verifies up to seq {plan.seq} at least")
        would = "dry run: would copy" if options.dry_run else "copies"
        left = 0 if plan.done is not None else plan.seq - plan.copied
        printing.say(f"{would} {left} of {plan.seq} events ({plan.commits} commits, {plan.bytes} bytes in all)")
        if options.dry_run:
            return 0
        done = log.fork(plan.parent, plan.seq, plan.session, who=arguments.who())
    printing.document(
        {
            "schema": "muster.fork/1",
            "session": done.session,
            "forked_from": {"session": done.parent, "seq": done.seq, "digest": done.digest},
            "seq": done.receipt.last_seq,
            "digest": done.receipt.digest,
            "created": done.is_new,
            "parent_quarantined": plan.parent_quarantined,
        },
        options.output,
    )
    return 0


def change_row(change: Change) -> dict[str, Any]:
    return {"schema": "muster.change/1", "field": change.field, "before": change.before, "after": change.after}


def with_schema(found: dict[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, **found}
