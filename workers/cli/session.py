"""`muster session`: what sessions are doing, now or then."""

from __future__ import annotations

import argparse
from typing import Any

from projections.difference import Change
from projections.queries import Views
from workers.cli import arguments, printing
from workers.settings import Settings

SCHEMA = "muster.session/1"
COLUMNS = ("session", "seq", "state", "first_actor", "last_type", "last_at", "quarantined")
DIFFERENCE_COLUMNS = ("field", "before", "after")


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    ls = arguments.command(group, "ls", "list sessions by partition and id", run_ls)
    ls.add_argument("--all", action="store_true", help="all of them; else --limit")
    ls.add_argument("--limit", type=int, default=50, help="how many (50)")
    ls.add_argument("--after", metavar="SESSION", help="begin after this session: the last one of the page before")
    show = arguments.command(group, "show", "show one session", run_show)
    show.add_argument("session")
    show.add_argument(
        "--at", metavar="SEQ|TIME", help="as it stood right after this seq, or at this time (server's clock)"
    )
    diff = arguments.command(group, "diff", "what differs between two states, field by field", run_diff)
    diff.add_argument("session")
    diff.add_argument("--from", dest="before", metavar="SEQ|TIME", required=True, help="the state to begin with")
    diff.add_argument("--to", dest="after", metavar="SEQ|TIME", help="the state to compare it with (default: now)")
    diff.add_argument("--with", dest="other", metavar="SESSION", help="--to is a state of this session")


def run_ls(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        found = Views(store, log).sessions(after=options.after, limit=None if options.all else options.limit)
        printing.rows(map(with_schema, found), options.output, columns=COLUMNS)
    return 0


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        views = Views(store, log)
        at = None if options.at is None else arguments.moment(options.at)
        found = views.session(options.session) if at is None else views.session_at(options.session, at)
        printing.document(with_schema(found), options.output)
    return 0


def run_diff(options: argparse.Namespace, settings: Settings) -> int:
    before = arguments.moment(options.before)
    after = None if options.after is None else arguments.moment(options.after)
    with arguments.opened(settings) as (log, store):
        found = Views(store, log).difference(options.session, before, after, other=options.other)
    printing.rows(map(change_row, found), options.output, columns=DIFFERENCE_COLUMNS)
    return 0


def change_row(change: Change) -> dict[str, Any]:
    return {"schema": "muster.change/1", "field": change.field, "before": change.before, "after": change.after}


def with_schema(found: dict[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, **found}
