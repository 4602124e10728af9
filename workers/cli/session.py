"""`muster session`: what sessions are doing, now or at a seq."""

from __future__ import annotations

import argparse
from typing import Any, Final

from projections.queries import Views
from projections.searching import Filter
from projections.what_happened import RECENT
from workers.cli import arguments, filtering, printing
from workers.settings import Settings

SCHEMA = "muster.session/1"
COUNT_SCHEMA: Final = "muster.count/1"
CONTEXT_SCHEMA: Final = "muster.context/1"
TRANSITION_SCHEMA: Final = "muster.transition/1"
TRANSITION_COLUMNS: Final = (
    *("session", "seq", "time", "actor", "type", "from", "to", "previous_type", "severity", "perf_delta"),
)
COLUMNS = ("session", "seq", "state", "first_actor", "last_type", "last_at", "quarantined")


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    ls = arguments.command(group, "ls", "list sessions by partition and id, or those that meet a filter", run_ls)
    arguments.page(ls, "begin after this session: the last one of the page before; with a filter, after its `cursor`")
    ls.add_argument("--count", action="store_true", help="how many there are, and nothing else")
    filtering.options(ls)
    show = arguments.command(group, "show", "show one session", run_show)
    show.add_argument("session")
    show.add_argument("--at", type=int, metavar="SEQ", help="as it stood right after this seq")
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
        at = options.at
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


def with_schema(found: dict[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, **found}
