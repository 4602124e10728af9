"""`muster agent`: what agents did, over all sessions."""

from __future__ import annotations

import argparse
from typing import Any

from projections.queries import Views
from workers.cli import arguments, filtering, printing
from workers.settings import Settings

SCHEMA = "muster.agent/1"
COLUMNS = ("agent", "events", "sessions", "present", "severities", "perf_delta")
EVENT_SCHEMA = "muster.agent-event/1"
EVENT_COLUMNS = ("session", "seq", "time", "type", "data")


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    ls = arguments.command(group, "ls", "list agents by id", run_ls)
    ls.add_argument("--all", action="store_true", help="all of them; else --limit")
    ls.add_argument("--limit", type=int, default=50, help="how many (50)")
    ls.add_argument("--after", metavar="AGENT", help="begin after this agent: the last one of the page before")
    show = arguments.command(group, "show", "show one agent, with the impacts of what it did", run_show)
    show.add_argument("agent")
    events = arguments.command(group, "events", "list the events of an agent, session by session", run_events)
    events.add_argument("agent")
    arguments.page(events, "begin after this `cursor`: that of the last row of the page before")
    filtering.times(events)


def run_ls(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        found = Views(store, log).agents(after=options.after, limit=None if options.all else options.limit)
        printing.rows(map(with_schema, found), options.output, columns=COLUMNS)
    return 0


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        printing.document(with_schema(Views(store, log).agent(options.agent)), options.output)
    return 0


def run_events(options: argparse.Namespace, settings: Settings) -> int:
    times = {"since": options.since, "until": options.until}
    with arguments.opened(settings) as (log, store):
        views = Views(store, log)
        found = printing.pages(
            lambda after, limit: views.agent_events(options.agent, **times, after=after, limit=limit),
            options.after,
            None if options.all else options.limit,
        )
        printing.rows(({"schema": EVENT_SCHEMA, **event} for event in found), options.output, columns=EVENT_COLUMNS)
    return 0


def with_schema(found: dict[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, **found}
