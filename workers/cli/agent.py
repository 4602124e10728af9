"""`muster agent`: what agents did, over all sessions."""

from __future__ import annotations

import argparse
from typing import Any

from projections.queries import Views
from workers.cli import arguments, printing
from workers.settings import Settings

SCHEMA = "muster.agent/1"
COLUMNS = ("agent", "events", "sessions", "present")


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    ls = arguments.command(group, "ls", "list agents by id", run_ls)
    ls.add_argument("--all", action="store_true", help="all of them; else --limit")
    ls.add_argument("--limit", type=int, default=50, help="how many (50)")
    ls.add_argument("--after", metavar="AGENT", help="begin after this agent: the last one of the page before")
    show = arguments.command(group, "show", "show one agent", run_show)
    show.add_argument("agent")


def run_ls(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        found = Views(store, log).agents(after=options.after, limit=None if options.all else options.limit)
        printing.rows(map(with_schema, found), options.output, columns=COLUMNS)
    return 0


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened(settings) as (log, store):
        printing.document(with_schema(Views(store, log).agent(options.agent)), options.output)
    return 0


def with_schema(found: dict[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, **found}
